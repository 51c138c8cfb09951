"""Do the trained weights still move? A cheap look every hundred steps, for which no accelerator is waited for.

An update that is smaller than half a step of a weight's number format rounds to nothing; such a run looks healthy and
learns nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

LOOK_EVERY: Final = 100  # steps
_BITS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Movement:
    """Compares the weights with themselves a while ago, by one sum of their bits per tensor."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._sums: Tensor | None = None
        self._step = -1

    def look(self, step: int) -> Tensor | None:
        """Whether nothing has changed since the last look, as a scalar on the weights' device.

        None at the first look, and where `step` (steps done) is not after the last one: a step that is begun again, or
        a run that went back, says nothing about the weights.
        """
        bits = [parameter.detach().view(_BITS[parameter.dtype.itemsize]) for parameter in self._parameters]
        sums = torch.stack([value.sum(dtype=torch.int64) for value in bits])
        before, self._sums = self._sums, sums
        is_later, self._step = step > self._step, step
        return (sums == before).all() if before is not None and is_later else None
