"""One training run, read from top to bottom: clips, caches, model, loop, adapter, videos.

This is the only room below the command line that sees the whole configuration; every part gets its
own section. `docs/walk.md` tells the same story with a link per stop.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simpletuner.caching.fingerprint import fingerprint
from simpletuner.caching.latents import LatentCache
from simpletuner.caching.prompts import PromptCache
from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import ExitCode, Severity, UserError
from simpletuner.core.files import ensure_writable, sweep, write_json_atomic
from simpletuner.data.batches import BatchStream
from simpletuner.data.contact_sheet import draw_contact_sheet
from simpletuner.events.run import Run, open_run
from simpletuner.events.types import (
    CheckpointSaved,
    Noticed,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
)
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.recipes.bad_files import keep_damaged
from simpletuner.recipes.encode import AutoencoderShelf, fill_caches
from simpletuner.recipes.plan import RunPlan, plan_run
from simpletuner.recipes.story import tell_plan, tell_training
from simpletuner.recipes.survey import batch_rules, check_sizes
from simpletuner.runtime.host import Host, find_host, release_memory
from simpletuner.runtime.lock import hold_folder
from simpletuner.runtime.signals import StopRequest, stop_on_signals
from simpletuner.training.build import Trainable, build_trainable
from simpletuner.training.checkpoint import (
    check_facts,
    prune_checkpoints,
    restore,
    save_average,
    save_checkpoint,
)
from simpletuner.training.due import is_due
from simpletuner.training.fit import fit
from simpletuner.training.self_test import refuse_deaf_layers
from simpletuner.training.state import TrainState
from simpletuner.validation.generate import VIDEO_FOLDER, Weights, generate_videos, video_name
from simpletuner.validation.report import write_report

WORTH_TELLING = 0.01  # share of the time spent waiting for data that is told

Outcome = Literal["finished", "stopped"]

ADVICE = "Open the report in a browser; a larger max_train_steps trains on from here."


@dataclass(frozen=True)
class Session:
    """What the loop and everything around it share."""

    config: RunConfig
    plan: RunPlan
    host: Host
    run: Run
    prompts: PromptCache
    autoencoders: AutoencoderShelf
    trainable: Trainable
    state: TrainState
    batches: BatchStream

    @property
    def folder(self) -> Path:
        return Path(self.config.checkpoint.output_dir)


def train_from_config(config: RunConfig, advice: str = ADVICE) -> int:
    """Do the run that `config` describes; returns the exit code.

    Args:
        config: The resolved configuration.
        advice: The last line for the user after a finished run.

    Raises:
        UserError: If something the user can mend is wrong, before or while training.
    """
    folder = Path(config.checkpoint.output_dir)
    host = find_host()
    name, seed = config.reporting.tracker_run_name, config.schedule.seed
    ensure_writable(folder, "output_dir")
    with (
        hold_folder(folder),
        open_run(
            folder, config.as_document(), name, seed=seed, reporting=config.reporting, webhooks=config.webhooks
        ) as run,
    ):
        # Not what lies below: another run may be filling a cache there, or live in a sub-folder.
        for own in (folder, folder / VIDEO_FOLDER):
            sweep(own, recursive=False)
        with stop_on_signals(lambda text: run.emit(Noticed("note", text))) as stop:
            plan = open_plan(config, host, run)
            autoencoders = AutoencoderShelf(config, plan, host)
            caches = fill_caches(config, plan, host, run.emit, autoencoders)
            keep_damaged(config, plan.storages, plan.samples, plan.found.left_out, "probe", run.emit)
            keep_damaged(config, plan.storages, plan.samples, caches[0].left_out, "decode", run.emit)
            session = begin_session(config, plan, caches, autoencoders, host, run)
            try:
                outcome = run_session(session, stop)
            finally:
                session.batches.close()
        run.emit(RunFinished(session.state.step, outcome, _next_words(session, outcome, advice)))
        write_report(folder, title=name)
    return ExitCode.INTERRUPTED if outcome == "stopped" else ExitCode.OK


def open_plan(config: RunConfig, host: Host, run: Run) -> RunPlan:
    """Plan the run, prove that the checkpoint fits it, and tell what was found."""
    for problem in config.notices:
        run.emit(Noticed("warning" if problem.severity is Severity.WARNING else "note", str(problem)))
    plan = plan_run(config, run.emit)
    run.emit(RunStarted(run.name, str(run.folder), str(plan.checkpoint or "")))
    if plan.checkpoint is not None:
        check_facts(plan.checkpoint, _early_facts(config, plan))
    tell_plan(config, plan, host, run.emit)
    return plan


def begin_session(
    config: RunConfig,
    plan: RunPlan,
    caches: tuple[LatentCache, PromptCache],
    autoencoders: AutoencoderShelf,
    host: Host,
    run: Run,
) -> Session:
    """Bring in the model and put everything where the checkpoint left it."""
    latents, prompts = caches
    samples = check_sizes(tuple(sample for sample in plan.samples if latents.holds(sample)), config)
    draw_contact_sheet(samples, plan.storages, run.folder / "contact_sheet.png")
    batches = BatchStream(
        samples,
        latents.read,
        prompts.read,
        batch_rules(config),
        seed=config.schedule.seed,
        caption_dropout=config.data.caption_dropout_probability,
        prefetch=config.data.dataloader_prefetch_qlen if config.data.dataloader_prefetch else 0,
    )
    total_steps = config.schedule.max_train_steps or config.schedule.num_train_epochs * batches.steps_per_epoch
    trainable = build_trainable(plan.family, plan.source, config, host.device)
    if config.precision.base_model_precision != "no_change":
        refuse_deaf_layers(trainable, plan.family, plan.source, config.precision.base_model_precision)
    state = TrainState.begin(trainable, batches, config, total_steps)
    if plan.checkpoint is not None:
        for sentence in restore(state, plan.checkpoint, _run_facts(config, plan)):
            run.emit(Noticed("note", sentence))
    if warning := state.learning_rate.warning():
        run.emit(Noticed("warning", warning))
    tell_training(config, samples, caches, state, batches, run.emit)
    return Session(config, plan, host, run, prompts, autoencoders, trainable, state, batches)


def run_session(session: Session, stop: StopRequest) -> Outcome:
    """Train until the last step or until somebody asks to stop; leaves adapter and videos behind."""
    config, run, state = session.config, session.run, session.state
    total = state.total_steps
    if state.step >= total:
        complete_outputs(session)
        return "finished"
    if not (config.validation.disable_benchmark or config.validation.validation_disable):
        generate_base_videos(session)
    if config.validation.validation_on_startup:
        validate_trained(session)

    def saves(step: int) -> bool:
        return is_due(step, config.checkpoint.checkpoint_step_interval, total)

    def validates(step: int) -> bool:
        return is_due(step, config.validation.validation_step_interval, total)

    started, saved = time.monotonic(), state.step
    stop.patient = True
    run.emit(StageStarted("train", "Training", total, "steps", state.step))
    objective = FlowMatching(session.plan.family, session.plan.source, config.flow, config.schedule.seed)
    for done in fit(state, objective, stop=stop, settles=lambda step: saves(step) or validates(step)):
        run.emit(done)
        if saves(done.step):
            saved = save(session)
        if done.step == total:
            export(session)
        if validates(done.step) and not stop():
            validate_trained(session)
    run.emit(StageFinished("train", state.step, seconds := time.monotonic() - started, _told_wait(session, seconds)))
    if saved != state.step:
        save(session)
    stop.patient = False
    return "finished" if state.step >= total else "stopped"


def _told_wait(session: Session, seconds: float) -> str:
    """How long the loop waited for data; empty when that is not worth a word."""
    waited = session.batches.waited_seconds
    return f"waited {waited:.1f} s for data" if seconds > 0 and waited / seconds > WORTH_TELLING else ""


def save(session: Session) -> int:
    """Write a checkpoint, remove the oldest beyond the limit; returns the step saved."""
    started = time.monotonic()
    step = session.state.step
    path = save_checkpoint(session.state, session.folder, facts=_run_facts(session.config, session.plan))
    prune_checkpoints(session.folder, session.config.checkpoint.checkpoints_total_limit, keep=path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    session.run.emit(CheckpointSaved(step, str(path), time.monotonic() - started, size))
    return step


def complete_outputs(session: Session) -> None:
    """Make what a run that is trained to its end may lack: its adapter, its last videos.

    Raises:
        UserError: If the checkpoint is already beyond the end.
    """
    state = session.state
    if state.step > state.total_steps:
        raise UserError(
            f"the checkpoint is at step {state.step}, beyond the run's end at step {state.total_steps}",
            "A run cannot go back",
            "Raise max_train_steps, or continue from an earlier checkpoint in another output_dir",
        )
    session.run.emit(Noticed("note", f"nothing to train: step {state.step} of {state.total_steps} is done"))
    # Always: what lies there may be missing its average, or be of an earlier end of the run.
    export(session)
    if not all(has_videos(session, weights) for weights in shown_weights(session.config)):
        validate_trained(session)


def export(session: Session) -> Path:
    """Write the trained adapter where users look for it: the root of the run folder."""
    path = _weights_path(session)
    session.trainable.save_weights(path, _metadata(session))
    if session.state.average is not None:
        save_average(session.state, session.folder, _metadata(session))
    return path


def _weights_path(session: Session) -> Path:
    return session.folder / session.trainable.adapter.weights_name


def shown_weights(config: RunConfig) -> tuple[Weights, ...]:
    """Which weights validation shows: trained, averaged, or both."""
    if not config.average.use_ema:
        return ("adapter",)
    shown: dict[str, tuple[Weights, ...]] = {
        "none": ("adapter",), "ema_only": ("ema",), "comparison": ("adapter", "ema")
    }  # fmt: skip
    return shown[config.average.ema_validation]


def validate_trained(session: Session) -> None:
    """Generate the validation videos of the run as it is now."""
    for weights in shown_weights(session.config):
        validate(session, weights)


def validate(session: Session, weights: Weights) -> None:
    """Generate the validation videos with these weights; a failure never stops training."""
    config, plan = session.config, session.plan
    if config.validation.validation_disable or not config.prompts:
        return
    generate_videos(
        session.trainable.transformer,
        session.state.wearing,
        plan.family,
        plan.source,
        session.autoencoders,
        session.prompts,
        config.prompts,
        config.validation,
        step=session.state.step,
        weights=weights,
        frame_rate=config.data.framerate or FAMILIES[str(config.model.model_family)].frame_rate,
        folder=session.folder / VIDEO_FOLDER,
        emit=session.run.emit,
    )
    release_memory(session.host.device)


def has_videos(session: Session, weights: Weights) -> bool:
    """Whether every video of these weights at this step exists."""
    settings, folder = session.config.validation, session.folder / VIDEO_FOLDER
    step = 0 if weights == "base" else session.state.step
    return all(
        (folder / video_name(step, weights, prompt.nickname, width, height, settings.num_frames)).exists()
        for prompt in session.config.prompts
        for width, height in settings.resolutions
    )


def generate_base_videos(session: Session) -> None:
    """Generate the base model's videos once; again when prompts, settings or the model have changed."""
    facts = fingerprint(
        {
            "model": {part: session.plan.source.identity(part) for part in ("transformer", "autoencoder", "text")},
            "prompts": [(entry.nickname, entry.prompt, entry.image) for entry in session.config.prompts],
            "settings": session.config.validation.model_dump(mode="json"),
            "frame_rate": session.config.data.framerate,
            "precision": session.config.precision.model_dump(mode="json"),
            "token_length": session.config.model.tokenizer_max_length,
        }
    )
    record = session.folder / VIDEO_FOLDER / "base.json"
    if record.exists() and json.loads(record.read_text()) == facts and has_videos(session, "base"):
        return
    if session.state.step and not session.trainable.adapter.keeps_base:
        told = "the base model's videos are not made: its own weights have been trained since (model_type full)"
        session.run.emit(Noticed("note", told))
        return
    validate(session, "base")
    if has_videos(session, "base"):
        write_json_atomic(record, facts)


def _run_facts(config: RunConfig, plan: RunPlan) -> dict[str, Any]:
    """What identifies the run in its checkpoints, beside the model's own facts."""
    return {
        "model": plan.source.identity("transformer"),
        "release": plan.source.release,
        "train_batch_size": config.schedule.train_batch_size,
        "gradient_accumulation_steps": config.schedule.gradient_accumulation_steps,
        "caption_dropout_probability": config.data.caption_dropout_probability,
        **config.flow.model_dump(mode="json"),
    }


def _early_facts(config: RunConfig, plan: RunPlan) -> dict[str, Any]:
    """The facts known before the model is loaded, so that a misfit shows before any encoding."""
    return {
        **_run_facts(config, plan),
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


def _metadata(session: Session) -> dict[str, str]:
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
    }


def _next_words(session: Session, outcome: Outcome, advice: str) -> str:
    """Where everything is, and what to do next."""
    folder = session.folder.resolve()
    if outcome == "stopped":
        if session.state.step == 0:
            return "No step was finished. Start the same command again."
        return f"Saved checkpoint-{session.state.step} in {folder}. Start the same command again to go on from there."
    label = "adapter" if session.trainable.adapter.keeps_base else "weights"
    weights = f"{label}  {folder / session.trainable.adapter.weights_name}"
    return "\n".join((weights, f"report   {folder / 'report.html'}", advice))
