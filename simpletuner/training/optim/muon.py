"""Muon for matrices, AdamW for everything else, on bfloat16 parameters that lose no update.

PyTorch has Muon since 2.9, one matrix after the other and for matrices only. Here matrices of one shape are made
orthogonal together, and the rest of the parameters has its place; our tests compare with PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from simpletuner.runtime.seeds import stream_seed
from simpletuner.training.optim.adamw_bf16 import ADAM_MOMENTS, adamw_values
from simpletuner.training.optim.buckets import Bucket, BucketOptimizer
from simpletuner.training.optim.rounding import round_at_random

# Coefficients of the quintic that pulls singular values towards 1, from Jordan's post.
_QUINTIC: Final = (3.4445, -4.7750, 2.0315)
_SMALLEST_NORM: Final = 1e-7


class Muon(BucketOptimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) with random rounding of the parameters."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        match_rms_adamw: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        seed: int = 0,
    ) -> None:
        """Make the momenta, all zero.

        Args:
            params: bfloat16 parameters of one device; all must have a gradient at every step.
            lr: Learning rate; the loop sets it before each step.
            momentum: Memory of the momentum of a matrix, in [0, 1).
            nesterov: Whether the gradient counts once more on top of its momentum.
            ns_steps: Steps of the iteration that makes a matrix orthogonal.
            match_rms_adamw: Scale the step of a matrix of shape (a, b) by 0.2 * sqrt(max(a, b)), so that learning
                rates of AdamW fit (Liu et al. 2025, arXiv 2502.16982); else by sqrt(max(1, a / b)), as in the post.
            betas, eps: Of AdamW, for parameters that are no matrices.
            weight_decay: Decoupled: parameters shrink by lr * weight_decay per step.
            seed: Seed of the random rounding.

        Raises:
            UserError: If a parameter is not bfloat16.
        """
        settings = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "match_rms_adamw": match_rms_adamw,
        }
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, **settings})
        self._seed = seed
        self.make_buckets("muon", {"momentum": torch.float32}, takes=_is_matrix)
        self.make_buckets("muon", ADAM_MOMENTS, takes=lambda parameter: not _is_matrix(parameter))

    def _update(self, bucket: Bucket, number: int) -> None:
        gradients = bucket.gradients(self.gradients)
        is_muon = "momentum" in bucket.states
        values = _muon_values(bucket, gradients) if is_muon else adamw_values(bucket, gradients, number)
        bucket.put(round_at_random(values, stream_seed(self._seed, f"rounding/{bucket.index}", number)))


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim == 2


def _muon_values(bucket: Bucket, direction: Tensor) -> Tensor:
    """The bucket's matrices after a step of Muon, float32 [N]; their momenta are updated, gradients used up."""
    values, group = bucket.values(), bucket.group
    momentum = bucket.states["momentum"]
    momentum.lerp_(direction, 1.0 - group["momentum"])
    direction = direction.lerp_(momentum, group["momentum"]) if group["nesterov"] else momentum.clone()
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for matrix in bucket.views(direction):
        by_shape.setdefault(matrix.shape, []).append(matrix)
    for shape, matrices in by_shape.items():
        moves = orthogonalize(torch.stack(matrices), group["ns_steps"]).float()
        moves.mul_(group["lr"] * step_scale(shape, match_rms_adamw=group["match_rms_adamw"]))
        torch._foreach_copy_(matrices, list(moves.unbind()))
    return values.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(direction)


def step_scale(shape: torch.Size, *, match_rms_adamw: bool) -> float:
    """What the learning rate of a matrix of this shape is multiplied by."""
    rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if match_rms_adamw else math.sqrt(max(1.0, rows / columns))


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Pull all singular values of each matrix towards 1 (about 0.7 to 1.2 after 5 steps), keeping its directions.

    Args:
        matrices: [B, M, N] float32.
        steps: Steps of the Newton-Schulz iteration x <- a x + (b x xt + c (x xt)^2) x.

    Returns:
        [B, M, N] bfloat16.

    Source: Jordan et al. 2024; the iteration works in bfloat16 as there.
    """
    a, b, c = _QUINTIC
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
