"""The middle of a run: step after step, and what is due in between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Final, Literal

from simpletuner.core.errors import ExitCode, UserError
from simpletuner.events.phases import phase
from simpletuner.events.types import Noticed, StageFinished, StageStarted, StepFinished, StepSkipped, TrainingBegan
from simpletuner.recipes.calendar import Calendar
from simpletuner.recipes.evaluating import Evaluations
from simpletuner.recipes.pace import Pace
from simpletuner.recipes.recovery import Recovery, too_many_skipped
from simpletuner.recipes.run_length import rhythms_of
from simpletuner.recipes.saving import Archive, export, open_archive
from simpletuner.recipes.session import Session
from simpletuner.recipes.showing import (
    generate_base_videos,
    has_videos,
    rehearse,
    shown_weights,
    shows_videos,
    validate_trained,
)
from simpletuner.runtime.signals import Requests
from simpletuner.training.fit import fit_on
from simpletuner.training.out_of_memory import DoesNotFitError
from simpletuner.training.watch import LossWatch

WORTH_TELLING: Final = 0.01  # share of the time spent waiting for data that is told

Outcome = Literal["finished", "stopped"]


def run_session(session: Session, requests: Requests) -> Outcome:
    """Train until the last step or until somebody asks to stop; leaves adapter and videos behind."""
    config, run, state = session.config, session.run, session.state
    evaluations = Evaluations(session)
    if state.step >= state.total_steps or evaluations.stops:
        complete_outputs(session, evaluations)
        return "finished"
    rehearse(session)
    if not config.validation.disable_benchmark:
        generate_base_videos(session)
    if config.validation.validation_on_startup:
        validate_trained(session)
    evaluations.measure_first()
    started, first_step = time.monotonic(), state.step
    requests.patient = True
    run.emit(training_began(session))
    run.emit(StageStarted("train", "Training", state.total_steps, "steps", state.step))
    recovery, pace = Recovery(session), Pace(session)
    with open_archive(session, requests) as archive:
        while reason := train_on(session, archive, evaluations, requests, pace):
            recovery.go_back(reason)
            evaluations.look_back()
        seconds = time.monotonic() - started
        told = [text for text in (pace.summary(), _told_wait(session, seconds), pace.told_beside(seconds)) if text]
        run.emit(StageFinished("train", state.step - first_step, seconds, "; ".join(told)))
        if archive.last_step != state.step:
            archive.save()
    requests.patient = False
    return "finished" if state.step >= state.total_steps or evaluations.stops else "stopped"


def training_began(session: Session) -> TrainingBegan:
    """How long the loop is and where it goes on, for those who follow the run from outside."""
    state, batches, schedule = session.state, session.batches, session.config.schedule
    return TrainingBegan(
        step=state.step,
        total_steps=state.total_steps,
        epoch=batches.state_dict()["epoch"],
        total_epochs=math.ceil(batches.epochs.passed(state.total_steps)),
        batches_per_epoch=batches.batches_per_epoch,
        batch_size=schedule.train_batch_size,
        samples_per_step=schedule.train_batch_size * schedule.gradient_accumulation_steps,
    )


def train_on(session: Session, archive: Archive, evaluations: Evaluations, requests: Requests, pace: Pace) -> str:
    """Train to the end of the run, until somebody asks to stop, or until patience with the evaluation loss ends.

    Returns:
        Why the run must go back to a checkpoint; empty if it need not.

    Raises:
        UserError: If a checkpoint cannot be written.
    """
    calendar, watch = Calendar(session, rhythms_of(session.config)), LossWatch()

    def settles(step: int) -> bool:
        return calendar.look(step) or requests.has_wishes

    def stop() -> bool:
        return requests() or evaluations.stops

    for done in _steps(session, stop, settles, archive):
        session.run.emit(done)
        _tell_compilation(session)
        evaluations.note_step(done)
        try:
            archive.check()
            if isinstance(done, StepSkipped):
                if _is_lost(session, done):
                    return f"step {done.step}: {done.reason}"
            else:
                pace.note(done)
                for notice in watch.take(done):
                    session.run.emit(notice)
            if session.state.step == done.step:
                _do_what_is_due(session, done, calendar, archive, evaluations, requests, pace)
            if (news := pace.news(done.step)) is not None:
                session.run.emit(news)
        except UserError as error:
            if error.exit_code != ExitCode.NUMERICS:
                raise
            return error.problems[0].what
    return ""


def _steps(
    session: Session, stop: Callable[[], bool], settles: Callable[[int], bool], archive: Archive
) -> Iterator[StepFinished | StepSkipped]:
    """The steps; what was trained is saved before a step that cannot fit ends the run."""

    def tell(text: str) -> None:
        session.run.emit(Noticed("warning", text))

    try:
        yield from fit_on(session.state, session.objective, stop=stop, settles=settles, tell=tell)
    except DoesNotFitError:
        if session.state.step and archive.last_step != session.state.step:
            archive.save()
            archive.finish()
        raise


def _is_lost(session: Session, skipped: StepSkipped) -> bool:
    return too_many_skipped(session.state.skipped_steps, skipped.step, session.config.checkpoint.broken_steps_limit)


def _do_what_is_due(
    session: Session,
    done: StepFinished | StepSkipped,
    calendar: Calendar,
    archive: Archive,
    evaluations: Evaluations,
    requests: Requests,
    pace: Pace,
) -> None:
    """Checkpoints first, so that nothing is lost if the rest fails; at the end the weights where users look."""
    step = done.step
    is_wished, is_shown = requests.take("save"), requests.take("validate")
    if calendar.is_due("checkpoint", step) or is_wished:
        with pace.beside("checkpoint"):
            archive.save()
    elif calendar.is_due("rolling", step):
        with pace.beside("rolling"):
            archive.save(is_rolling=True)
    if calendar.is_due("evaluation", step) and not requests():
        with pace.beside("evaluation"):
            evaluations.measure_now()
    ends = step == session.state.total_steps or evaluations.stops
    if ends:
        archive.finish()
        export(session)
    if (calendar.is_due("validation", step) or is_shown or ends) and not requests():
        with pace.beside("validation"):
            _validate(session, archive, requests, is_last=ends)


def _validate(session: Session, archive: Archive, requests: Requests, *, is_last: bool) -> None:
    """The videos of the run as it is now, by this program or by the user's command."""
    settings = session.config.validation
    if settings.validation_method == "external-script" and not settings.validation_disable:
        archive.validate_outside()
    elif is_last and shows_videos(session.config):
        with phase("final_validation", session.run.emit):
            validate_trained(session, requests)
    else:
        validate_trained(session, requests)


def _tell_compilation(session: Session) -> None:
    compilation = session.trainable.compilation
    if compilation is not None and (news := compilation.news()):
        session.run.emit(Noticed("note", news))


def _told_wait(session: Session, seconds: float) -> str:
    """How long the loop waited for data; empty when that is not worth a word."""
    waited = session.batches.waited_seconds
    return f"waited {waited:.1f} s for data" if seconds > 0 and waited / seconds > WORTH_TELLING else ""


def complete_outputs(session: Session, evaluations: Evaluations) -> None:
    """Make what a run that is trained to its end may lack: its adapter, its last videos, its last measurement.

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
    reason = f"; {evaluations.told_stop()}" if evaluations.stops else ""
    session.run.emit(Noticed("note", f"nothing to train: step {state.step} of {state.total_steps} is done{reason}"))
    evaluations.measure_missing()
    # Always: what lies there may be missing its average, or be of an earlier end of the run.
    export(session)
    if not all(has_videos(session, weights) for weights in shown_weights(session.config)):
        validate_trained(session)
