"""Schedule-free AdamW: training that needs no decaying learning rate.

Three points are kept apart: `z` takes the steps, `x` is the average that is sampled, exported and evaluated, and
the gradient is taken at `y`, between the two. The model holds `y` while it trains; `x` is made
when somebody wants to look (`averaged_weights`), and put away again without touching `y`.

`KahanScheduleFree` keeps `y` as bfloat16 parameters and 16 further bits, together exact float32 values. The
package `schedulefree` (`adamw_schedulefree+no_kahan`) keeps it as float32 parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from simpletuner.training.optim.buckets import Bucket, BucketOptimizer
from simpletuner.training.optim.rounding import join_exactly, split_exactly


class KahanScheduleFree(BucketOptimizer):
    """Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682) on bfloat16 parameters, exact in float32."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        """Make the state: `z` at the parameters, the second moment zero.

        Args:
            params: bfloat16 parameters of one device; all must have a gradient at every step.
            lr: Learning rate; a warm-up is the loop's business, a decay is not wanted.
            betas: Share of `x` in `y`, and memory of the second moment; each in (0, 1).
            eps: Added to the root of the second moment.
            weight_decay: Taken at `y`; times the learning rate.
            r: Later steps weigh more in the average by their number to this power.
            weight_lr_power: Steps weigh in the average by the largest learning rate so far to this power.

        Raises:
            UserError: If a parameter is not bfloat16.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "r": r}
        counts = {"weight_lr_power": weight_lr_power, "k": 0, "weight_sum": 0.0, "lr_max": 0.0}
        super().__init__(params, {**defaults, **counts})
        states = {"rest": torch.int16, "z": torch.float32, "exp_avg_sq": torch.float32}
        self.make_buckets("adamw_schedulefree", states)
        self._shares: dict[int, float] = {}
        with torch.no_grad():
            for bucket in self.buckets:
                bucket.states["z"].copy_(bucket.values())

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter once from its gradient; nothing waits for the device.

        Raises:
            RuntimeError: If a parameter has no gradient.
        """
        self._shares = {id(group): _count(group) for group in self.param_groups}
        return super().step(closure)

    def _update(self, bucket: Bucket, number: int) -> None:
        group, share = bucket.group, self._shares[id(bucket.group)]
        beta1, beta2 = group["betas"]
        rest, z, squares = (bucket.states[name] for name in ("rest", "z", "exp_avg_sq"))
        y, gradients = join_exactly(bucket.values(), rest), bucket.gradients(self.gradients)
        squares.mul_(beta2).addcmul_(gradients, gradients, value=1.0 - beta2)
        direction = gradients.div_((squares / (1.0 - beta2**number)).sqrt_().add_(group["eps"]))
        direction.add_(y, alpha=group["weight_decay"])
        # y = beta1 * x + (1 - beta1) * z, where x moves by its share towards the new z.
        y.lerp_(z, share).add_(direction, alpha=group["lr"] * (beta1 * (1.0 - share) - 1.0))
        z.sub_(direction, alpha=group["lr"])
        rounded, left = split_exactly(y)
        rest.copy_(left)
        bucket.put(rounded)

    @torch.no_grad()
    def averages(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter with its average `x`, float32."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for bucket in self.buckets:
            y = join_exactly(bucket.values(), bucket.states["rest"])
            x = y.lerp_(bucket.states["z"], 1.0 - 1.0 / bucket.group["betas"][0])
            pairs += zip(bucket.parameters, bucket.views(x), strict=True)
        return pairs


def _count(group: dict[str, Any]) -> float:
    """Count a step of the group; gives the share with which the new point enters the average."""
    group["k"] += 1
    group["lr_max"] = max(group["lr"], group["lr_max"])
    weight = group["k"] ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
    group["weight_sum"] += weight
    share: float = weight / group["weight_sum"] if group["weight_sum"] else 0.0
    return share


@torch.no_grad()
def averaged_weights(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    """What a schedule-free optimizer wants to be sampled: each parameter with its average `x`.

    Works for our own and for those of the package `schedulefree`; before the first step they are the parameters.
    """
    if isinstance(optimizer, KahanScheduleFree):
        return optimizer.averages()
    return [
        (parameter, torch.lerp(parameter, optimizer.state[parameter]["z"], 1.0 - 1.0 / group["betas"][0]))
        for group in optimizer.param_groups
        for parameter in group["params"]
        if "z" in optimizer.state.get(parameter, {})
    ]
