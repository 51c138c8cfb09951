"""AdamW for bfloat16 parameters that loses no update.

Moments are float32 and the new parameter is computed in float32; it is then rounded to one of its
two bfloat16 neighbours at random, with chances that keep its mean. Rounding to the nearest would
lose every update below half a bfloat16 step, which is nearly all of them at usual learning rates. A
bfloat16 second moment would never decay: times 0.999 it rounds back to itself.

The random bits depend only on (seed, step, position), so a resumed run rounds the same way.

Parameters are updated in flat buckets: a step is a dozen operations per bucket, not per parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from simpletuner.core.errors import UserError
from simpletuner.runtime.seeds import stream_seed

# Bounds the float32 copies made while a bucket is updated (16 MiB each) for models of any size. The
# division into buckets decides which random bits a parameter gets: changing this number changes runs.
BUCKET_ELEMENTS = 4 * 1024 * 1024


@dataclass(frozen=True)
class _Bucket:
    """Neighbouring parameters of one group that are updated together.

    Attributes:
        index: Running number, part of the key of the random bits.
        parameters: In the order of the group.
        first, second: [N] float32 moments; the state of each parameter is a view of them.
    """

    index: int
    parameters: list[Tensor]
    first: Tensor
    second: Tensor

    @property
    def sizes(self) -> list[int]:
        return [parameter.numel() for parameter in self.parameters]


class AdamWBF16(Optimizer):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with random rounding of the parameters."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        seed: int = 0,
    ) -> None:
        """Make the moments, all zero.

        Args:
            params: bfloat16 parameters of one device; all must have a gradient at every step.
            lr: Learning rate; the loop sets it before each step.
            betas: Memory of the first and of the second moment, each in [0, 1).
            eps: Added to the root of the second moment.
            weight_decay: Decoupled: parameters shrink by lr * weight_decay per step.
            seed: Seed of the random rounding.

        Raises:
            UserError: If a parameter is not bfloat16.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed = seed
        # float32 gradients that stand in for `.grad`, which cannot be wider than its parameter.
        self.gradients: dict[Tensor, Tensor] = {}
        # As torch's fused optimizers have it: a step at which this is 1 changes nothing, and the host need not know.
        self.found_inf: Tensor | None = None
        self._step_supports_amp_scaling = True
        self._buckets: list[tuple[dict[str, Any], _Bucket]] = []
        for group in self.param_groups:
            _refuse_other_formats(group["params"])
            for parameters in _divide(group["params"]):
                self._buckets.append((group, self._make_bucket(len(self._buckets), parameters)))

    def _make_bucket(self, index: int, parameters: list[Tensor]) -> _Bucket:
        total = sum(parameter.numel() for parameter in parameters)
        first, second = (torch.zeros(total, dtype=torch.float32, device=parameters[0].device) for _ in range(2))
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, mean, square in zip(parameters, first.split(sizes), second.split(sizes), strict=True):
            self.state[parameter] = {
                "step": 0,
                "exp_avg": mean.view_as(parameter),
                "exp_avg_sq": square.view_as(parameter),
            }
        return _Bucket(index, parameters, first, second)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter once from its gradient; nothing waits for the device.

        Raises:
            RuntimeError: If a parameter has no gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, bucket in self._buckets:
            self._update(group, bucket)
        self.gradients.clear()
        return loss

    def _update(self, group: dict[str, Any], bucket: _Bucket) -> None:
        number = self._count_step(bucket)
        gradient = torch.cat([self._gradient(parameter) for parameter in bucket.parameters]).float()
        parameters = torch.cat([parameter.view(-1) for parameter in bucket.parameters]).float()
        beta1, beta2 = group["betas"]
        if self.found_inf is None:
            bucket.first.lerp_(gradient, 1.0 - beta1)
            bucket.second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        else:
            kept = self.found_inf != 0
            gradient.masked_fill_(kept, 0.0)
            bucket.first.lerp_(gradient, torch.where(kept, 0.0, 1.0 - beta1))
            bucket.second.mul_(torch.where(kept, 1.0, beta2)).addcmul_(gradient, gradient, value=1.0 - beta2)
        divisor = torch.sqrt(bucket.second, out=gradient)
        divisor.div_((1.0 - beta2**number) ** 0.5).add_(group["eps"])
        parameters.mul_(1.0 - group["lr"] * group["weight_decay"])
        parameters.addcdiv_(bucket.first, divisor, value=-group["lr"] / (1.0 - beta1**number))
        rounded = round_at_random(parameters, stream_seed(self._seed, f"rounding/{bucket.index}", number))
        if self.found_inf is not None:
            before = torch.cat([parameter.view(-1) for parameter in bucket.parameters])
            rounded = torch.where(self.found_inf != 0, before, rounded)
        torch._foreach_copy_(
            bucket.parameters,
            [part.view_as(p) for part, p in zip(rounded.split(bucket.sizes), bucket.parameters, strict=True)],
        )

    def _gradient(self, parameter: Tensor) -> Tensor:
        gradient = self.gradients.get(parameter, parameter.grad)
        if gradient is None:
            raise RuntimeError(f"a trained parameter of shape {tuple(parameter.shape)} got no gradient")
        return gradient.reshape(-1)

    def _count_step(self, bucket: _Bucket) -> int:
        number = int(self.state[bucket.parameters[0]]["step"]) + 1
        for parameter in bucket.parameters:
            self.state[parameter]["step"] = number
        return number

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state: moments and step counts; rates and betas stay as configured.

        The base class would cast the moments to the parameters' bfloat16 and break the buckets up.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in enumerate(parameters):
            saved, own = state_dict["state"][number], self.state[parameter]
            own["step"] = int(saved["step"])
            own["exp_avg"].copy_(saved["exp_avg"])
            own["exp_avg_sq"].copy_(saved["exp_avg_sq"])


def round_at_random(values: Tensor, seed: int) -> Tensor:
    """Round float32 values [N] to bfloat16 neighbours so that the mean of the result is the value.

    A uniform 16-bit integer is added to the bit pattern and the low half is dropped: the chance of
    the neighbour further from zero is the share of the way to it. Values that bfloat16 has stay.
    `values` is used up.

    Args:
        values: Finite float32 values, contiguous.
        seed: The same seed gives the same rounding on the same kind of device.
    """
    generator = torch.Generator(values.device).manual_seed(seed)
    # One 64-bit draw serves four values: drawing is the dearest part on a CPU.
    draws = torch.empty((values.numel() + 3) // 4, dtype=torch.int64, device=values.device)
    draws.random_(-(2**63), None, generator=generator)
    noise = draws.view(torch.int16)[: values.numel()]
    pattern = values.view(torch.int32)
    pattern.add_(noise).add_(1 << 15).bitwise_and_(-(1 << 16))
    return values.to(torch.bfloat16)


def _divide(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Cut the list into runs of at most `BUCKET_ELEMENTS` elements; a larger parameter stays alone."""
    runs: list[list[Tensor]] = []
    held = BUCKET_ELEMENTS
    for parameter in parameters:
        if held + parameter.numel() > BUCKET_ELEMENTS:
            runs.append([])
            held = 0
        runs[-1].append(parameter)
        held += parameter.numel()
    return runs


def _refuse_other_formats(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        if parameter.dtype != torch.bfloat16:
            raise UserError(
                f"optimizer adamw_bf16 was given parameters in {str(parameter.dtype).removeprefix('torch.')}",
                "It trains bfloat16 parameters only",
                "Choose the optimizer torch-adamw for float32 parameters",
            )
