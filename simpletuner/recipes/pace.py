"""How fast a run is: what it does per second, and how much of the device's own rate is useful work."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from simpletuner.events.types import StepFinished
from simpletuner.models.cost import cost_source
from simpletuner.recipes.forecast import find_trained_part
from simpletuner.recipes.session import Session
from simpletuner.runtime.matrix_rate import matrix_rate

RATES_FILE: Final = "matrix_rates.json"
WARM_UP_STEPS: Final = 3  # of each start: they compile, and fill caches and allocators
LEAST_SECONDS: Final = 60.0  # less than that tells nothing about the device


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
        per_second = [count / self._seconds for count in (self._steps, self._clips, self._tokens)]
        rates = f"{per_second[0]:.2f} it/s, {per_second[1]:.2f} clips/s, {per_second[2]:,.0f} tokens/s"
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
