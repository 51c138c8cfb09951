"""Gradients of bfloat16 parameters, added up in float32 over the micro-batches of a step.

Autograd would add them up in bfloat16, where whatever is below half a step of the sum (0.2 to 0.4 per cent of it) is
rounded away. Here the gradient of a micro-batch is rounded once, when it is made, and their sum never.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from simpletuner.training.optim.buckets import BucketOptimizer


class GradientSums:
    """float32 sums beside bfloat16 parameters; the parameters' own `.grad` stays empty while they are kept."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Listen for gradients of those parameters that are narrower than float32."""
        self._sums: dict[Tensor, Tensor] = {}
        self._listening = [
            parameter.register_post_accumulate_grad_hook(self._take)
            for parameter in parameters
            if self.keeps(parameter)
        ]

    def close(self) -> None:
        """Listen no more."""
        for handle in self._listening:
            handle.remove()
        self.clear()

    def _take(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        parameter.grad = None
        if parameter in self._sums:
            self._sums[parameter].add_(gradient)
        else:
            self._sums[parameter] = gradient.to(torch.float32)

    def of(self, parameter: nn.Parameter) -> Tensor | None:
        """The sum since the last `clear`, float32; the parameter's own gradient where no sum is kept."""
        return self._sums.get(parameter, parameter.grad)

    def keeps(self, parameter: nn.Parameter) -> bool:
        """Whether this parameter's gradients are added up here."""
        return parameter.dtype.itemsize < torch.float32.itemsize

    def add_zero(self, parameter: nn.Parameter) -> Tensor:
        """Give a parameter that was left out of the whole step a gradient of zero."""
        self._sums[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
        return self._sums[parameter]

    def hand_over(self, optimizer: Optimizer) -> None:
        """Give the sums to the optimizer: as they are to one that takes float32, to others rounded once."""
        if isinstance(optimizer, BucketOptimizer):
            optimizer.gradients.update(self._sums)
        else:
            for parameter, total in self._sums.items():
                parameter.grad = total.to(parameter.dtype)
        self._sums.clear()

    def clear(self) -> None:
        """Forget what was added up."""
        self._sums.clear()
