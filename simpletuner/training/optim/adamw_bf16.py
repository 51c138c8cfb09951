"""AdamW for bfloat16 parameters that loses no update.

Moments are float32 and the new parameter is computed in float32; it is then rounded to one of its
two bfloat16 neighbours at random, with chances that keep its mean. Rounding to the nearest would
lose every update below half a bfloat16 step, which is nearly all of them at usual learning rates. A
bfloat16 second moment would never decay: times 0.999 it rounds back to itself.

The random bits depend only on (seed, step, position), so a resumed run rounds the same way.

The update is PyTorch's fused kernel on flat float32 copies (`buckets.py`): moments and copies are read and
written once, whatever the number of parameters.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from simpletuner.runtime.seeds import stream_seed
from simpletuner.training.optim.buckets import Bucket, BucketOptimizer
from simpletuner.training.optim.rounding import round_at_random

ADAM_MOMENTS = {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}


class AdamWBF16(BucketOptimizer):
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
        # As torch's fused optimizers have it: a step at which this is 1 changes nothing, and the host need not know.
        self.found_inf: Tensor | None = None
        self._step_supports_amp_scaling = True
        self.make_buckets("adamw_bf16", ADAM_MOMENTS)

    def _update(self, bucket: Bucket, number: int) -> None:
        values = adamw_values(bucket, bucket.gradients(self.gradients), number, self.found_inf)
        # Where nothing was changed, the values are ones that bfloat16 has, which stay.
        bucket.put(round_at_random(values, stream_seed(self._seed, f"rounding/{bucket.index}", number)))


def adamw_values(bucket: Bucket, gradients: Tensor, number: int, found_inf: Tensor | None = None) -> Tensor:
    """The bucket's parameters after step `number` (from 1) of AdamW, float32 [N]; its moments are updated.

    With a `found_inf` of 1 nothing changes, whatever the gradients.
    """
    values, group = bucket.values(), bucket.group
    adamw(
        [values],
        [gradients],
        [bucket.states["exp_avg"]],
        [bucket.states["exp_avg_sq"]],
        [],
        # The kernel counts the step itself before it uses it.
        [torch.full((), float(number - 1), device=values.device)],
        fused=True,
        found_inf=found_inf,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
    return values
