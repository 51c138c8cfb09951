"""Frozen weights that leave the device for a while, so that another model has room there.

Copies in the machine's memory are made once, at the first leave: frozen weights never change. Plain weights keep
their `Parameter`; quantized ones are taken apart and put together again (`frozen_weights.py`), nothing is converted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from simpletuner.runtime.frozen_weights import frozen_weights
from simpletuner.runtime.host import release_memory


class Absence:
    """The frozen weights of one model, and where they wait."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """
        Args:
            model: All on `device`; what is trained stays there always.
            device: Where it is computed.
        """
        self._model, self._device = model, device
        self._stored: list[list[Tensor]] | None = None

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """While open, the frozen weights are in RAM and their room on the device is free; the model cannot be used."""
        if self._stored is None:
            self._stored = [[self._copy(leaf) for leaf in weight.leaves] for weight in frozen_weights(self._model)]
        self._wear(lambda leaf: leaf)
        release_memory()
        try:
            yield
        finally:
            release_memory()
            # Copies, on the CPU too: what waits is never what is computed with.
            self._wear(lambda leaf: leaf.to(self._device, copy=True, non_blocking=True))

    def _copy(self, leaf: Tensor) -> Tensor:
        stored = torch.empty(leaf.shape, dtype=leaf.dtype, pin_memory=self._device.type == "cuda")
        return stored.copy_(leaf)

    def _wear(self, place: Callable[[Tensor], Tensor]) -> None:
        assert self._stored is not None
        with torch.inference_mode(False), torch.no_grad():
            for weight, leaves in zip(frozen_weights(self._model), self._stored, strict=True):
                parameter = weight.module._parameters[weight.name]
                placed: Sequence[Tensor] = [place(leaf) for leaf in leaves]
                if type(parameter) is nn.Parameter and len(placed) == 1:
                    parameter.data = placed[0]
                else:
                    weight.wear(placed)
