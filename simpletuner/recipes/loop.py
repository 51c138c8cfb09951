"""The middle of a run: step after step, and what is due in between."""

from __future__ import annotations

import time
from typing import Final, Literal

from simpletuner.core.errors import UserError
from simpletuner.events.types import Noticed, StageFinished, StageStarted, TrainingBegan
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.recipes.saving import export, save
from simpletuner.recipes.session import Session
from simpletuner.recipes.showing import generate_base_videos, has_videos, shown_weights, validate_trained
from simpletuner.runtime.signals import StopRequest
from simpletuner.training.due import is_due
from simpletuner.training.fit import fit

WORTH_TELLING: Final = 0.01  # share of the time spent waiting for data that is told

Outcome = Literal["finished", "stopped"]


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
    run.emit(training_began(session))
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


def training_began(session: Session) -> TrainingBegan:
    """How long the loop is and where it goes on, for those who follow the run from outside."""
    state, batches, schedule = session.state, session.batches, session.config.schedule
    return TrainingBegan(
        step=state.step,
        total_steps=state.total_steps,
        epoch=batches.state_dict()["epoch"],
        total_epochs=-(-state.total_steps // batches.steps_per_epoch),
        batches_per_epoch=batches.batches_per_epoch,
        batch_size=schedule.train_batch_size,
        samples_per_step=schedule.train_batch_size * schedule.gradient_accumulation_steps,
    )


def _told_wait(session: Session, seconds: float) -> str:
    """How long the loop waited for data; empty when that is not worth a word."""
    waited = session.batches.waited_seconds
    return f"waited {waited:.1f} s for data" if seconds > 0 and waited / seconds > WORTH_TELLING else ""


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
