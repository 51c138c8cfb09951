"""Reads the loss as it comes and tells what a person would want to know: a spike, divergence, a plateau, a standstill.

The loss of a step mostly shows which noise levels were drawn. Here it is divided, band by band, by what that band's
loss was in the beginning, so that 1 means "as at the start" whatever was drawn. Knows events only and changes nothing;
after a resume it begins anew.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from statistics import fmean, variance
from typing import Final

from simpletuner.events.types import Noticed, StepFinished

BAND_PREFIX: Final = "loss/sigma_"
FIRST_VALUES: Final = 10  # of a band, whose mean is its measure; it does not count before
MEMORY: Final = 50  # steps over which the series is smoothed
SPIKE: Final = 100.0  # times the smoothed series
SPIKE_PAUSE: Final = 100  # steps before another spike is told
DIVERGED: Final = 2.0  # times the lowest point of the smoothed series
BAD_AS_THE_START: Final = 0.8  # below this a rise is no divergence
WINDOW: Final = 200  # steps on each side of the comparison that finds a plateau
VISIBLE: Final = 0.05  # a fall of this share must be distinguishable from chance before a plateau is told
LEVEL: Final = 0.01  # a fall below this share is none


class LossWatch:
    """Follows one run from one start."""

    def __init__(self) -> None:
        self._first: dict[str, list[float]] = {}
        self._values: deque[float] = deque(maxlen=2 * WINDOW)
        self._count = 0
        self._smooth = math.nan
        self._lowest = math.inf
        self._last_spike = -SPIKE_PAUSE
        self._has_diverged = self._is_level = False

    def take(self, event: StepFinished) -> Iterator[Noticed]:
        """What is worth telling after this step."""
        if event.still_steps:
            yield Noticed(
                "warning",
                f"step {event.step}: no trained weight has changed in the last {event.still_steps} steps. Raise "
                f"learning_rate ({event.learning_rate:.3g} now), or use an optimizer that rounds at random "
                "(adamw_bf16) or keeps float32 weights",
            )
        value = self._corrected(event)
        if value is None:
            return
        yield from self._spike(event, value)
        self._count += 1
        self._values.append(value)
        # A plain mean at first, then one that forgets.
        share = max(1.0 / self._count, 1.0 / MEMORY)
        self._smooth = value if self._count == 1 else self._smooth + share * (value - self._smooth)
        yield from self._divergence(event)
        yield from self._plateau(event)

    def _corrected(self, event: StepFinished) -> float | None:
        """The step's loss in units of the beginning; None while no drawn band has enough values."""
        bands = {name: loss for name, loss in event.terms.items() if name.startswith(BAND_PREFIX)}
        ratios = []
        for name, loss in (bands or {"loss": event.loss}).items():
            first = self._first.setdefault(name, [])
            if len(first) < FIRST_VALUES:
                first.append(loss)
            elif (measure := fmean(first)) > 0:
                ratios.append(loss / measure)
        return fmean(ratios) if ratios else None

    def _spike(self, event: StepFinished, value: float) -> Iterator[Noticed]:
        if self._count < FIRST_VALUES or value <= SPIKE * self._smooth:
            return
        if event.step - self._last_spike >= SPIKE_PAUSE:
            yield Noticed(
                "warning",
                f"step {event.step}: the loss is {event.loss:.4g}, {value / self._smooth:.0f} times what it was at "
                "such noise levels. One such step may be a damaged clip; several mean that learning_rate is too high",
            )
        self._last_spike = event.step

    def _divergence(self, event: StepFinished) -> Iterator[Noticed]:
        if self._count < MEMORY:
            return
        self._lowest = min(self._lowest, self._smooth)
        is_high = self._smooth > max(DIVERGED * self._lowest, BAD_AS_THE_START)
        if is_high and not self._has_diverged:
            yield Noticed(
                "warning",
                f"step {event.step}: the loss is diverging: over the last {MEMORY} steps it is "
                f"{self._smooth / self._lowest:.1f} times its lowest (corrected for noise levels). Lower "
                "learning_rate, or set max_grad_norm",
            )
        self._has_diverged = is_high

    def _plateau(self, event: StepFinished) -> Iterator[Noticed]:
        if self._count % WINDOW or len(self._values) < 2 * WINDOW:
            return
        values = list(self._values)
        older, newer = values[:WINDOW], values[WINDOW:]
        before, after = fmean(older), fmean(newer)
        error = 2.0 * math.sqrt((variance(older) + variance(newer)) / WINDOW)
        is_visible = error < VISIBLE * before
        is_level = is_visible and abs(before - after) < LEVEL * before
        if is_level and not self._is_level:
            yield Noticed(
                "note",
                f"step {event.step}: the loss has not fallen for {2 * WINDOW} steps: {before:.3f} and {after:.3f} "
                f"(± {error:.3f}) of what it was at the start, corrected for noise levels. Videos may still get "
                "better; compare them, or the loss on clips that are not trained",
            )
        if is_visible:
            self._is_level = is_level
