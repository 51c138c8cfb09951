"""What identifies a run: facts that its checkpoints compare, and facts that travel with its weights."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from simpletuner.config.comment import fill_comment
from simpletuner.config.run_config import RunConfig
from simpletuner.config.sources import process_environment
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
    }


def early_facts(config: RunConfig, plan: RunPlan) -> dict[str, Any]:
    """The facts known before the model is loaded, so that a misfit shows before any encoding."""
    return {
        **run_facts(config, plan),
        "model_type": str(config.model.model_type),
        **({} if config.model.model_type == "full" else _early_adapter_facts(config)),
        "optimizer": config.optimizer.optimizer,
        "seed": config.schedule.seed,
    }


def _early_adapter_facts(config: RunConfig) -> dict[str, Any]:
    alpha = config.adapter.lora_alpha
    return {
        "lora_type": config.adapter.lora_type,
        "lora_rank": config.adapter.lora_rank,
        # An absent alpha follows the rank; one misfit is not told twice.
        **({} if alpha is None else {"lora_alpha": float(alpha)}),
        **(
            {}
            if config.lycoris is None
            else {"lycoris_config": config.lycoris.model_dump(mode="json", exclude_none=True)}
        ),
    }


def weights_metadata(session: Session) -> dict[str, str]:
    """Facts about the training that travel in the adapter file; all values are texts."""
    config, state = session.config, session.state
    return {
        "global_step": str(state.step),
        "run_name": config.reporting.tracker_run_name,
        "base_model": str(config.model.pretrained_model_name_or_path or session.plan.source.release),
        "base_release": session.plan.source.release,
        "learning_rate": str(config.schedule.learning_rate),
        "optimizer": config.optimizer.optimizer,
        "seed": str(config.schedule.seed),
        "samples": str(len({sample.name for sample in session.plan.samples})),
        **comment_metadata(session),
    }


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
