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
from simpletuner.recipes.encode import fill_caches, load_autoencoder
from simpletuner.recipes.plan import RunPlan, plan_run
from simpletuner.recipes.story import tell_plan, tell_training
from simpletuner.recipes.survey import check_sizes
from simpletuner.runtime.host import Host, find_host, release_memory
from simpletuner.runtime.lock import hold_folder
from simpletuner.runtime.signals import StopRequest, stop_on_signals
from simpletuner.training.build import Trainable, build_trainable
from simpletuner.training.checkpoint import WEIGHTS_NAME, check_facts, prune_checkpoints, restore, save_checkpoint
from simpletuner.training.due import is_due
from simpletuner.training.fit import fit
from simpletuner.training.state import TrainState
from simpletuner.validation.generate import VIDEO_FOLDER, generate_videos, video_name
from simpletuner.validation.report import write_report

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
    with hold_folder(folder), open_run(folder, config.as_document(), name, seed=seed) as run:
        # Not what lies below: another run may be filling a cache there, or live in a sub-folder.
        for own in (folder, folder / VIDEO_FOLDER):
            sweep(own, recursive=False)
        with stop_on_signals(lambda text: run.emit(Noticed("note", text))) as stop:
            plan = open_plan(config, host, run)
            caches = fill_caches(config, plan, host, run.emit)
            session = begin_session(config, plan, caches, host, run)
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
    config: RunConfig, plan: RunPlan, caches: tuple[LatentCache, PromptCache], host: Host, run: Run
) -> Session:
    """Bring in the model and put everything where the checkpoint left it."""
    latents, prompts = caches
    samples = check_sizes(tuple(sample for sample in plan.samples if latents.holds(sample)), config)
    draw_contact_sheet(samples, plan.storages, run.folder / "contact_sheet.png")
    batches = BatchStream(
        samples,
        latents.read,
        prompts.read,
        batch_size=config.schedule.train_batch_size,
        accumulation=config.schedule.gradient_accumulation_steps,
        seed=config.schedule.seed,
        caption_dropout=config.data.caption_dropout_probability,
    )
    total_steps = config.schedule.max_train_steps or config.schedule.num_train_epochs * batches.steps_per_epoch
    trainable = build_trainable(plan.family, plan.source, config, host.device)
    state = TrainState.begin(trainable, batches, config, total_steps)
    if plan.checkpoint is not None:
        for sentence in restore(state, plan.checkpoint, _run_facts(config, plan)):
            run.emit(Noticed("note", sentence))
    if warning := state.learning_rate.warning():
        run.emit(Noticed("warning", warning))
    tell_training(config, samples, caches, state, batches, run.emit)
    return Session(config, plan, host, run, prompts, trainable, state, batches)


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
        validate(session, "adapter")

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
            validate(session, "adapter")
    run.emit(StageFinished("train", state.step, time.monotonic() - started))
    if saved != state.step:
        save(session)
    stop.patient = False
    return "finished" if state.step >= total else "stopped"


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
    """Make what a run that is trained to its end lacks: its adapter, its last videos.

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
    if not (session.folder / WEIGHTS_NAME).exists():
        export(session)
    if not has_videos(session, "adapter"):
        validate(session, "adapter")


def export(session: Session) -> Path:
    """Write the trained adapter where users look for it: the root of the run folder."""
    path = session.folder / WEIGHTS_NAME
    session.trainable.save_weights(path, _metadata(session))
    return path


def validate(session: Session, weights: Literal["base", "adapter"]) -> None:
    """Generate the validation videos with or without the adapter; a failure never stops training."""
    config, plan = session.config, session.plan
    if config.validation.validation_disable or not config.prompts:
        return
    generate_videos(
        session.trainable,
        plan.family,
        plan.source,
        lambda: load_autoencoder(config, plan, session.host),
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


def has_videos(session: Session, weights: Literal["base", "adapter"]) -> bool:
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
            "prompts": [(entry.nickname, entry.prompt) for entry in session.config.prompts],
            "settings": session.config.validation.model_dump(mode="json"),
            "frame_rate": session.config.data.framerate,
            "precision": session.config.precision.model_dump(mode="json"),
            "token_length": session.config.model.tokenizer_max_length,
        }
    )
    record = session.folder / VIDEO_FOLDER / "base.json"
    if record.exists() and json.loads(record.read_text()) == facts and has_videos(session, "base"):
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
        "flow_schedule_shift": config.flow.flow_schedule_shift,
        "flow_schedule_auto_shift": config.flow.flow_schedule_auto_shift,
        "flow_sigmoid_scale": config.flow.flow_sigmoid_scale,
        "flow_use_uniform_schedule": config.flow.flow_use_uniform_schedule,
    }


def _early_facts(config: RunConfig, plan: RunPlan) -> dict[str, Any]:
    """The facts known before the model is loaded, so that a misfit shows before any encoding."""
    alpha = config.adapter.lora_alpha
    return {
        **_run_facts(config, plan),
        "lora_type": config.adapter.lora_type,
        "lora_rank": config.adapter.lora_rank,
        # An absent alpha follows the rank; one misfit is not told twice.
        **({} if alpha is None else {"lora_alpha": float(alpha)}),
        "optimizer": config.optimizer.optimizer,
        "seed": config.schedule.seed,
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
    return "\n".join((f"adapter  {folder / WEIGHTS_NAME}", f"report   {folder / 'report.html'}", advice))
