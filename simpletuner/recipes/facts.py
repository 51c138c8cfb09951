"""What identifies a run: facts that its checkpoints compare, and facts that travel with its weights."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timezone
from typing import Any

from simpletuner.config.comment import fill_comment
from simpletuner.config.hub_name import public_name
from simpletuner.config.run_config import RunConfig
from simpletuner.config.sources import process_environment
from simpletuner.data.caption_rules import instance_prompts
from simpletuner.recipes.continuing import settled_facts
from simpletuner.recipes.plan import RunPlan
from simpletuner.recipes.session import Session


def run_facts(config: RunConfig, plan: RunPlan) -> dict[str, Any]:
    """What identifies the run in its checkpoints, beside the model's own facts."""
    return {
        "model": plan.source.identity("transformer"),
        "release": plan.source.release,
        "train_batch_size": config.schedule.train_batch_size,
        "gradient_accumulation_steps": config.schedule.gradient_accumulation_steps,
        "num_train_epochs": config.schedule.num_train_epochs,
        "caption_dropout_probability": config.data.caption_dropout_probability,
        **config.flow.model_dump(mode="json"),
        **(config.crepa.model_dump(mode="json") if config.crepa.crepa_enabled else {}),
        **(config.rollout.model_dump(mode="json") if config.rollout.scheduled_sampling_max_step_offset else {}),
        "temporal_difference_weight": config.auxiliary.temporal_difference_weight,
        "is_regularisation_data": prior_sets(config),
    }


def prior_sets(config: RunConfig) -> list[str]:
    """Ids of the sets of prior data."""
    return sorted(
        dataset.id for dataset in config.datasets if dataset.is_regularisation_data and not dataset.is_evaluation
    )


def early_facts(config: RunConfig, plan: RunPlan) -> dict[str, Any]:
    """The facts known before the model is loaded, so that a misfit shows before any encoding."""
    return {
        **run_facts(config, plan),
        **settled_facts(config),
    }


def weights_metadata(session: Session) -> dict[str, str]:
    """Facts about the training that travel in the file of its weights, all of them texts; no path of this machine."""
    config, state, source = session.config, session.state, session.plan.source
    return {
        "global_step": str(state.step),
        "run_name": config.reporting.tracker_run_name,
        "base_model": public_name(config.model.pretrained_model_name_or_path or source.release),
        "base_model_fingerprint": source.identity("transformer"),
        "base_release": source.release,
        "training_summary": json.dumps(training_summary(session), ensure_ascii=False),
        **model_spec_texts(session),
        "learning_rate": str(config.schedule.learning_rate),
        "optimizer": config.optimizer.optimizer,
        "seed": str(config.schedule.seed),
        "samples": str(len({sample.name for sample in session.plan.samples})),
        **comment_metadata(session),
    }


def training_summary(session: Session) -> dict[str, Any]:
    """What somebody who finds the file wants to know of its training; JSON values."""
    config, state, samples = session.config, session.state, session.plan.samples
    schedule, flow = config.schedule, config.flow
    return {
        "steps": state.step,
        "epochs": round(float(session.batches.epochs.passed(state.step)), 2) if state.step else 0,
        "clips": len({sample.name for sample in samples}),
        "buckets": {str(bucket): count for bucket, count in Counter(sample.bucket for sample in samples).items()},
        "clips_per_step": schedule.train_batch_size * schedule.gradient_accumulation_steps,
        "trained": session.trainable.adapter.describe(),
        "trained_values": session.trainable.trained_count,
        "learning_rate": schedule.learning_rate,
        "lr_scheduler": schedule.lr_scheduler,
        "optimizer": config.optimizer.optimizer,
        "mixed_precision": config.precision.mixed_precision,
        "base_model_precision": config.precision.base_model_precision,
        "caption_dropout_probability": config.data.caption_dropout_probability,
        "flow_schedule_shift": flow.flow_schedule_shift,
        "first_frame_given": flow.ltx_i2v_prob if any(sample.is_i2v for sample in samples) else 0,
    }


def model_spec_texts(session: Session) -> dict[str, str]:
    """Entries that other programs show (github.com/Stability-AI/ModelSpec): title, what it is for, trigger words."""
    config, source = session.config, session.plan.source
    phrases = [prompt for dataset in config.datasets for prompt in instance_prompts(dataset)]
    texts = {
        "modelspec.title": config.reporting.tracker_run_name,
        "modelspec.description": f"{session.trainable.adapter.describe()}, for LTX-Video {source.release}",
    }
    if phrases:
        texts["modelspec.trigger_phrase"] = "; ".join(dict.fromkeys(phrases))
    return texts


def comment_metadata(session: Session) -> dict[str, str]:
    """The user's own comment, filled in; empty without one."""
    written, state = session.config.reporting.modelspec_comment, session.state
    if not written:
        return {}
    values = {
        "current_step": state.step,
        "current_epoch": state.batches.state_dict()["epoch"],
        "timestamp": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return {"modelspec.comment": fill_comment(written, values, process_environment())}
