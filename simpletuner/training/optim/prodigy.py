"""Prodigy: Adam that finds its own step size, without ever waiting for the device.

The estimate `d` of the distance to the solution stays on the device. The package `prodigyopt` computes the
same, but reads two numbers of every parameter back at every step; our tests compare with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from simpletuner.training.optim.buckets import divide, gradients_of

_SHARED = ("d", "d_max", "d_numerator")


class Prodigy(Optimizer):
    """Prodigy (Mishchenko & Defazio 2023, arXiv 2306.06101, algorithm 4: the form of Adam).

    All groups share one estimate; it is kept in each of them, so that a checkpoint carries it.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float = 0.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = True,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        slice_p: int = 1,
        *,
        adapts_steps: int | None = None,
    ) -> None:
        """Make the state, all zero, and remember where the parameters begin.

        Args:
            params: float32 parameters of one device; all must have a gradient at every step.
            lr: Multiplies the estimated step size; 1 is meant.
            betas: Memory of the first and of the second moment, each in [0, 1).
            beta3: Memory of the sums behind the estimate; 0 takes the root of the second beta.
            eps: Added to the root of the second moment, times the estimate.
            weight_decay: Decoupled; times the step size.
            use_bias_correction: Whether moments are corrected for their start at zero, as in Adam.
            safeguard_warmup: Whether a learning rate below 1, as in a warm-up, is left out of the estimate's
                divisor, where it would make later steps too long.
            d0: First estimate, above 0.
            d_coef: Multiplies each new estimate.
            growth_rate: Largest factor by which the estimate may grow in one step.
            slice_p: The estimate looks at every n-th value only, which saves its memory.
            adapts_steps: Steps after which the estimate stays as it is; None adapts to the end.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "k": 0})
        self._beta3 = beta3 or math.sqrt(betas[1])
        self._corrects, self._safeguards = use_bias_correction, safeguard_warmup
        self._d0, self._d_coef, self._growth = d0, d_coef, growth_rate
        self._slice, self._adapts_steps = slice_p, adapts_steps
        # Double precision costs nothing for three numbers, and Apple's chips have none.
        device = self.param_groups[0]["params"][0].device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for group in self.param_groups:
            for name, value in zip(_SHARED, (d0, d0, 0.0), strict=True):
                group[name] = torch.tensor(value, dtype=dtype, device=device)
            for parameter in group["params"]:
                self.state[parameter] = {
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                    "s": torch.zeros_like(self._sliced(parameter)),
                    "p0": self._sliced(parameter).clone(),
                }

    def _sliced(self, tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(-1)[:: self._slice]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter once from its gradient; nothing waits for the device.

        Raises:
            RuntimeError: If a parameter has no gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = self.param_groups[0]
        if first["lr"] == 0.0:  # the first step of a warm-up: nothing moves, nothing is learnt
            return loss
        number = first["k"]
        estimate = [first[name].to(first["params"][0].device) for name in _SHARED]
        beta1, beta2 = first["betas"]
        correction = 1.0
        if self._corrects:
            correction = math.sqrt(1 - beta2 ** (number + 1)) / (1 - beta1 ** (number + 1))
        before = estimate[0]
        rate = before * (first["lr"] * correction)
        adapts = self._adapts_steps is None or number < self._adapts_steps
        if adapts:
            estimate = self._adapt(estimate, rate)
        for group in self.param_groups:
            for parameters in divide(group["params"]):
                self._move(parameters, group, before, rate, estimate[0])
            group.update(zip(_SHARED, estimate, strict=True), k=number + 1)
        return loss

    def _adapt(self, estimate: list[Tensor], rate: Tensor) -> list[Tensor]:
        """The three shared numbers after this step's gradients."""
        d, d_max, numerator = estimate
        gain, weight = d / self._d0 * rate, d / self._d0 * (d if self._safeguards else rate)
        parts: list[Tensor] = []
        lengths: list[Tensor] = []
        for parameters in (run for group in self.param_groups for run in divide(group["params"])):
            gradients = [self._sliced(gradient) for gradient in gradients_of(parameters)]
            sums, starts = self._states(parameters, "s"), self._states(parameters, "p0")
            ways = torch._foreach_sub(starts, [self._sliced(parameter) for parameter in parameters])
            parts += [torch.dot(g, way) for g, way in zip(gradients, ways, strict=True)]
            torch._foreach_mul_(sums, self._beta3)
            torch._foreach_add_(sums, torch._foreach_mul(gradients, weight.to(sums[0].dtype)))
            lengths += torch._foreach_norm(sums, 1)
        numerator = numerator * self._beta3 + gain * torch.stack(parts).sum()
        length = torch.stack(lengths).sum().to(d.dtype)
        # Without any gradient there is nothing to learn from.
        found = torch.where(length > 0, self._d_coef * numerator / length, d)
        d = torch.where(d == self._d0, torch.maximum(d, found), d)
        d_max = torch.maximum(d_max, found)
        return [torch.minimum(d_max, d * self._growth), d_max, numerator]

    def _move(self, parameters: list[Tensor], group: dict[str, Any], before: Tensor, rate: Tensor, d: Tensor) -> None:
        """One step of Adam whose moments are those of gradients times the estimate."""
        beta1, beta2 = group["betas"]
        moments, squares = self._states(parameters, "exp_avg"), self._states(parameters, "exp_avg_sq")
        dtype = moments[0].dtype
        scaled = torch._foreach_mul(gradients_of(parameters), before.to(dtype))
        torch._foreach_lerp_(moments, scaled, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, scaled, scaled, 1 - beta2)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_add_(divisors, (d * group["eps"]).to(dtype))
        if group["weight_decay"]:
            # Not by a factor: 1 minus the first, tiny estimates is not a float32 number.
            decay = torch._foreach_mul(parameters, (group["weight_decay"] * rate).to(dtype))
            torch._foreach_sub_(parameters, decay)
        moves = torch._foreach_div(moments, divisors)
        torch._foreach_mul_(moves, rate.to(dtype))
        torch._foreach_sub_(parameters, moves)

    def _states(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        return [self.state[parameter][name] for parameter in parameters]
