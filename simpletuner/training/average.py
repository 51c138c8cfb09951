"""Running averages of the trained weights (EMA), which often generate better than the last ones.

The averages are float32 whatever the weights are. They can stand in for the weights while videos are
made or files are written; the trained weights come back bit for bit, also after an exception.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from simpletuner.config.sections.average import AverageSection
from simpletuner.core.errors import UserError
from simpletuner.maths.ema import average_into, decay_at
from simpletuner.training.host_copies import HostCopies, host_copy


class WeightAverage:
    """Float32 averages of named parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: AverageSection, device: torch.device) -> None:
        """Start from the weights as they are.

        Args:
            parameters: The trained parameters by name.
            settings: Memory, interval and place of the averages.
            device: The computing device, used where `ema_device` is "accelerator".
        """
        self._parameters = dict(parameters)
        self._settings = settings
        self._device = device if settings.ema_device == "accelerator" else torch.device("cpu")
        self.updates = 0
        # Averages that live elsewhere than the weights are moved by a thread, for which no step waits.
        self._travels = any(p.device.type != self._device.type for p in self._parameters.values())
        self._mover = ThreadPoolExecutor(1, thread_name_prefix="average")
        self._under_way: Future[None] | None = None
        self._averages = {
            name: parameter.detach().to(self._device, torch.float32, copy=True)
            for name, parameter in self._parameters.items()
        }

    @property
    def facts(self) -> dict[str, float]:
        """What shapes the average; a change is taken on a resumed run and told."""
        settings = self._settings
        return {
            "ema_decay": settings.ema_decay,
            "ema_update_interval": settings.ema_update_interval,
            "ema_warmup_steps": settings.ema_warmup_steps,
        }

    @property
    def horizon_steps(self) -> float:
        """Optimizer steps over which the average remembers: interval / (1 - decay)."""
        return self._settings.ema_update_interval / (1.0 - self._settings.ema_decay)

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 1), if it is time; no accelerator is waited for."""
        interval = self._settings.ema_update_interval
        if step % interval:
            return
        # The option counts optimizer steps, the average counts its updates.
        warmup = -(-self._settings.ema_warmup_steps // interval)
        decay = decay_at(self.updates, self._settings.ema_decay, warmup)
        self.updates += 1
        if not self._travels:
            average_into(self._in_order, [self._parameters[name].detach() for name in self._averages], decay)
            return
        self._settle()
        copies = HostCopies()
        weights = [copies.take(self._parameters[name]) for name in self._averages]
        self._under_way = self._mover.submit(self._take_in, copies, weights, decay)

    @property
    def _in_order(self) -> list[Tensor]:
        return list(self._averages.values())

    def _take_in(self, copies: HostCopies, weights: list[Tensor], decay: float) -> None:
        """What an update is: on the thread, once the weights have landed."""
        copies.wait()
        average_into(self._in_order, weights, decay)

    def _settle(self) -> None:
        """Wait until the last update is done; raises what went wrong with it."""
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, the model computes with the averages."""
        self._settle()
        with in_place([(parameter, self._averages[name]) for name, parameter in self._parameters.items()]):
            yield

    def tensors(self, copy: Callable[[Tensor], Tensor] = host_copy) -> dict[str, Tensor]:
        """Copies of the averages on the CPU, float32; `copy` says how one gets there."""
        self._settle()
        return {name: copy(average) for name, average in self._averages.items()}

    def updates_after(self, steps: int) -> int:
        """Updates that a run has done after so many steps; where that is not known (0), so many that the next one
        remembers as it does in the long run."""
        settings = self._settings
        if steps:
            return steps // settings.ema_update_interval
        settled = math.ceil((10 * settings.ema_decay - 1) / (1 - settings.ema_decay)) + 1
        return max(settled, -(-settings.ema_warmup_steps // settings.ema_update_interval), 1)

    def load_tensors(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Continue from saved averages, exactly.

        Raises:
            UserError: If they belong to other parameters.
        """
        if {name: tensor.shape for name, tensor in tensors.items()} != {
            name: average.shape for name, average in self._averages.items()
        }:
            raise UserError(
                "the saved averages belong to other weights",
                "Averages continue only over the same trained layers",
                "Continue with the adapter of the saved run, or switch use_ema off",
            )
        self._settle()
        for name, average in self._averages.items():
            average.copy_(tensors[name])
        self.updates = updates


@contextlib.contextmanager
def in_place(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """While open, each parameter holds its tensor; afterwards it is what it was, bit for bit."""
    held = [parameter.detach().clone() for parameter, _ in pairs]
    try:
        with torch.no_grad():
            for parameter, tensor in pairs:
                parameter.copy_(tensor)
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), before in zip(pairs, held, strict=True):
                parameter.copy_(before)
