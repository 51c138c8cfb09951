"""The loop: one optimizer step after the other, one event for each.

What follows a step (a checkpoint, videos, the terminal) is the caller's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from simpletuner.events.types import StepFinished, StepSkipped
from simpletuner.training.readout import PendingStep
from simpletuner.training.state import TrainState
from simpletuner.training.step import Objective, refuse_broken_step, take_step, tell_nobody


def fit(
    state: TrainState,
    objective: Objective,
    *,
    stop: Callable[[], bool],
    settles: Callable[[int], bool] = lambda step: True,
) -> Iterator[StepFinished]:
    """Train as `fit_on` does; a step whose loss or gradients are no finite numbers ends the run.

    Raises:
        UserError: Naming the step and its samples (exit code 5); the state is then marked broken and cannot be saved.
    """
    for event in _fit(state, objective, stop, settles, skips=False):
        assert isinstance(event, StepFinished)
        yield event


def fit_on(
    state: TrainState,
    objective: Objective,
    *,
    stop: Callable[[], bool],
    settles: Callable[[int], bool] = lambda step: True,
    tell: Callable[[str], None] = tell_nobody,
) -> Iterator[StepFinished | StepSkipped]:
    """Train until the run's last step, or until `stop` says so; broken steps are passed over, noted and told.

    Events come in the order of the steps. On an accelerator a step's numbers can be read while the
    next step is already computing; then `state` is one step ahead of the event. Where the caller
    looks at the state (checkpoint, validation) that must not be, so `settles` names those steps:
    their events come before the next step begins.

    Args:
        state: Where to begin; advanced in place.
        objective: Batch -> loss terms.
        stop: Asked before each step and between its micro-batches; a step under way is then given up, and the
            state is the one after the step before.
        settles: Asked once after each step whether the caller acts on the state after it; all steps by default.
            On the CPU every step settles, whatever the answer.
        tell: Told when a step did not fit into memory and is repeated.
    """
    return _fit(state, objective, stop, settles, skips=True, tell=tell)


def _fit(
    state: TrainState,
    objective: Objective,
    stop: Callable[[], bool],
    settles: Callable[[int], bool],
    *,
    skips: bool,
    tell: Callable[[str], None] = tell_nobody,
) -> Iterator[StepFinished | StepSkipped]:
    transformer = state.trainable.transformer
    reader = _Reader(state, skips=skips)
    while state.step < state.total_steps and not stop():
        if not transformer.training:
            transformer.train()
        pending = take_step(state, objective, stop, skips=skips, tell=tell)
        yield from reader.finish_earlier()
        if pending is None:
            break
        reader.pending = pending
        if settles(state.step) or not pending.waits:
            yield from reader.finish_earlier()
    yield from reader.finish_earlier()


class _Reader:
    """Holds the step whose numbers are still to be read, and the clock of the last one read."""

    def __init__(self, state: TrainState, *, skips: bool) -> None:
        self.pending: PendingStep | None = None
        self._state = state
        self._skips = skips
        self._finished = 0.0

    def finish_earlier(self) -> Iterator[StepFinished | StepSkipped]:
        """Read the pending step, if any, and hand its event out."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        fault = pending.fault
        if fault is not None and self._skips:
            self._state.skipped_steps.append(fault.step)
            yield fault.as_event()
            return
        refuse_broken_step(self._state, pending)
        event = pending.finish(self._state.trainable.device, self._finished)
        self._finished = time.perf_counter()
        yield event
