"""What is still to come of a run: steps, and what recurs between them, each by its measured length or its forecast."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Final

from simpletuner.recipes.calendar import Work
from simpletuner.recipes.run_length import Rhythms
from simpletuner.training.due import due_steps

TRAINING: Final = "training"
_BESIDE: Final[Mapping[Work, str]] = {
    "checkpoint": "checkpoint", "rolling": "checkpoint", "evaluation": "evaluation", "validation": "validation"
}  # fmt: skip


@dataclass
class _Spent:
    """How often something happened and how long that took."""

    times: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class TimeLeft:
    """Counts what recurs in the rest of a run; epochs of equal length are assumed.

    Attributes:
        rhythms: When a run does what recurs.
        total_steps: Its length.
        steps_per_epoch: Length of an epoch.
        forecast: Seconds of one step -> the forecast length of each work that has not happened yet. Asked for at most
            once, when it is needed.
    """

    rhythms: Rhythms
    total_steps: int
    steps_per_epoch: int
    forecast: Callable[[float], Mapping[str, float]]
    _spent: dict[str, _Spent] = field(default_factory=dict)
    _due: dict[str, list[int]] = field(default_factory=dict)
    _expected: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measuring(self, work: Work) -> Iterator[None]:
        """Note how long training waits for some work; one that fails tells nothing."""
        started = time.monotonic()
        yield
        spent = self._spent.setdefault(_BESIDE[work], _Spent())
        spent.times += 1
        spent.seconds += time.monotonic() - started

    def seconds_of(self, work: Work) -> float:
        """How long training has waited for some work so far."""
        spent = self._spent.get(_BESIDE[work])
        return spent.seconds if spent else 0.0

    def after(self, step: int, step_seconds: float) -> tuple[dict[str, float], tuple[str, ...]]:
        """Seconds of each kind of work that are left after `step`, and those kinds whose length is a forecast."""
        left = {TRAINING: max(self.total_steps - step, 0) * step_seconds}
        guessed = []
        for work in self._dates():
            times = len(self._due[work]) - bisect_right(self._due[work], step)
            if not times:
                continue
            spent = self._spent.get(work)
            if spent is None:
                guessed.append(work)
            each = spent.seconds / spent.times if spent else self._expect(step_seconds).get(work, 0.0)
            left[work] = times * each
        return left, tuple(guessed)

    def _dates(self) -> dict[str, list[int]]:
        """Work -> the steps after which it is due."""
        if not self._due:
            merged: dict[str, set[int]] = {}
            for one in fields(self.rhythms):
                steps = due_steps(getattr(self.rhythms, one.name), self.total_steps, self.steps_per_epoch)
                merged.setdefault(_BESIDE[one.name], set()).update(steps)  # type: ignore[index]
            self._due.update({work: sorted(steps) for work, steps in merged.items()})
        return self._due

    def _expect(self, step_seconds: float) -> Mapping[str, float]:
        if not self._expected:
            self._expected.update(dict.fromkeys(_BESIDE.values(), 0.0) | dict(self.forecast(step_seconds)))
        return self._expected
