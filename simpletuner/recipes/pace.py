"""How fast a run is: what it does per second, and how much of the device's own rate is useful work."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Final

import torch

from simpletuner.events.types import PaceMeasured, StepFinished
from simpletuner.events.wording import told_duration, told_pace
from simpletuner.models.cost import cost_source
from simpletuner.recipes.calendar import Work
from simpletuner.recipes.disk_plan import trained_values
from simpletuner.recipes.forecast import find_trained_part
from simpletuner.recipes.probing import task_of
from simpletuner.recipes.run_length import Rhythms, rhythms_of
from simpletuner.recipes.session import Session
from simpletuner.recipes.showing import shows_videos
from simpletuner.recipes.time_forecast import forecast_times
from simpletuner.recipes.time_left import TimeLeft
from simpletuner.runtime.matrix_rate import matrix_rate
from simpletuner.training.due import Rhythm

RATES_FILE: Final = "matrix_rates.json"
WARM_UP_STEPS: Final = 3  # of each start: they compile, and fill caches and allocators
LEAST_SECONDS: Final = 60.0  # less than that tells nothing about the device
TOLD_EVERY_SECONDS: Final = 10.0
STALL_WORTH_TELLING: Final = 0.002  # share of the time; a copy in memory every some hundred steps is far below
_TOLD_BESIDE: Final[dict[Work, str]] = {
    "validation": "validation",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
}
# Bytes per second at which training waits for a checkpoint, estimated: copied in memory, or written to a disk.
_COPY_RATE: Final = {True: 4e9, False: 5e8}


class Pace:
    """Adds up what the steps of one start of a run have done."""

    def __init__(self, session: Session) -> None:
        """Nothing is measured before `summary`."""
        self._session = session
        self._cost = cost_source(str(session.config.model.model_family)).find(session.config.model)
        # What is computed again for want of memory is no useful work.
        found = find_trained_part(session.config, self._cost)
        self._trained = replace(found, checkpointing=0.0)
        self._flops: dict[int, float] = {}
        self._seen = self._steps = self._clips = self._tokens = 0
        self._seconds = self._useful = 0.0
        self._told, self._told_steps = 0.0, 0
        self._left = TimeLeft(
            _rhythms(session),
            session.state.total_steps,
            session.batches.steps_per_epoch,
            partial(_forecast_beside, session),
        )

    def beside(self, work: Work) -> AbstractContextManager[None]:
        """To be held open around what recurs between steps: how long that takes is part of what is left."""
        return self._left.measuring(work)

    def news(self, step: int) -> PaceMeasured | None:
        """Rates, and what is left after `step`; None if that was told a moment ago, or nothing is known yet."""
        now = time.monotonic()
        if not self._steps or not self._seconds:
            return None
        # The first figures are of few steps, so they are told anew when those have doubled.
        if self._steps < 2 * self._told_steps and now - self._told < TOLD_EVERY_SECONDS:
            return None
        self._told, self._told_steps = now, self._steps
        left, forecast = self._left.after(step, self._seconds / self._steps)
        return PaceMeasured(step, *self._rates(), sum(left.values()), left, forecast)

    def told_beside(self, seconds: float) -> str:
        """What training has waited for between its steps; empty when that is not worth a word."""
        told = []
        for work, name in _TOLD_BESIDE.items():
            spent = self._left.seconds_of(work)
            if seconds and spent / seconds >= STALL_WORTH_TELLING:
                told.append(f"{name} {told_duration(spent)} ({spent / seconds:.1%})")
        return f"kept waiting: {', '.join(told)}" if told else ""

    def _rates(self) -> tuple[float, float, float]:
        """Steps, clips and tokens per second."""
        return self._steps / self._seconds, self._clips / self._seconds, self._tokens / self._seconds

    def note(self, step: StepFinished) -> None:
        """Count a step; the first ones of a start are left out."""
        self._seen += 1
        if self._seen <= WARM_UP_STEPS:
            return
        self._steps += 1
        self._clips += step.samples
        self._tokens += step.tokens
        self._seconds += step.seconds
        self._useful += step.samples * self._clip_flops(step.tokens // max(step.samples, 1))

    def summary(self) -> str:
        """Rates as people understand them, and the share of the device's own where that was long enough to tell."""
        if not self._steps or not self._seconds:
            return ""
        rates = told_pace(*self._rates())
        if self._seconds < LEAST_SECONDS:
            return rates
        useful, host = self._useful / self._seconds, self._session.host
        dtype = torch.bfloat16 if self._session.trainable.dtype == torch.bfloat16 else torch.float32
        device_rate = matrix_rate(host.device, host.device_name, dtype, self._session.folder / RATES_FILE)
        share = f"{useful / device_rate:.0%} of what this device does with large matrices"
        return f"{rates}, {useful / 1e12:.3g} TFLOP/s of useful products: {share}"

    def _clip_flops(self, tokens: int) -> float:
        if tokens not in self._flops:
            text = self._session.config.model.tokenizer_max_length
            self._flops[tokens] = self._cost.train_clip(tokens, text, self._trained).total_flops
        return self._flops[tokens]


def _rhythms(session: Session) -> Rhythms:
    config, rhythms = session.config, rhythms_of(session.config)
    outside = config.validation.validation_method == "external-script" and not config.validation.validation_disable
    return rhythms if outside or shows_videos(config) else replace(rhythms, validation=Rhythm(at_end=False))


def _forecast_beside(session: Session, step_seconds: float) -> dict[str, float]:
    """How long a validation, a measurement of the evaluation loss and a checkpoint will take.

    The forecast is off by about as much for them as it is for the steps, which have been measured.
    """
    config = session.config
    task, card = task_of(config, session.plan, session.host)
    times = forecast_times(task, card)
    slower = step_seconds / times.step if times.step else 1.0
    size = trained_values(task.cost, task.trained) * (task.trained.parameter_bytes + task.trained.state_bytes)
    return {
        "validation": times.validation_each * slower,
        "evaluation": times.evaluation * slower / max(task.length.evaluations, 1),
        "checkpoint": size / _COPY_RATE[config.checkpoint.checkpoint_in_background],
    }
