"""Where the two matrices of a LoRA begin: at nothing, or at the principal part of the layer's weight.

`default` and `gaussian` draw A and leave B at zero. `pissa` (Meng et al. 2024, arXiv 2404.02948) and `olora`
(Büyükakyüz 2024, arXiv 2406.01775) begin at a part of the weight itself; what they begin with is taken off
again by the caller, so that the model's output is unchanged. Pure tensors; no layers, no settings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Halko et al. 2011 (arXiv 0909.4061): a few columns more than wanted and some power iterations make the
# randomized decomposition as good as the exact one, at a hundredth of its time on a wide layer.
_OVERSAMPLING = 16
_POWER_ITERATIONS = 12


def draw_down(lora_rank: int, width: int, generator: torch.Generator, *, gaussian: bool = False) -> Tensor:
    """Start values of A [r, in], drawn in float32 on the CPU so that device and format do not matter."""
    if gaussian:
        return torch.randn(lora_rank, width, generator=generator) / lora_rank
    # Kaiming with a = sqrt(5), PEFT's default: uniform within 1 / sqrt(in).
    return (torch.rand(lora_rank, width, generator=generator) * 2 - 1) / math.sqrt(width)


def split_principal(weight: Tensor, lora_rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """PiSSA: A [r, in] and B [out, r] float32 with scale * B @ A = the `lora_rank` largest singular parts.

    Args:
        weight: [out, in], of any number format.
        lora_rank: If it is above what the weight has, the remaining rows of A are drawn and B is zero there.
        scale: What the product is multiplied with in the layer, alpha / r; above 0.
        generator: CPU generator of the randomized decomposition.
    """
    weight = weight.detach().float()
    rank = min(lora_rank, *weight.shape)
    columns = min(rank + _OVERSAMPLING, *weight.shape)
    probe = torch.randn(weight.shape[1], columns, generator=generator).to(weight.device)
    basis = torch.linalg.qr(weight @ probe).Q
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    roots = (values[:rank] / scale).sqrt()
    return _widen(roots[:, None] * right[:rank], (basis @ left[:, :rank]) * roots, lora_rank, generator)


def split_orthonormal(weight: Tensor, lora_rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """OLoRA: B [out, r] the first columns of Q, A [r, in] the first rows of R, where the weight is Q @ R; float32."""
    rank = min(lora_rank, *weight.shape)
    orthonormal, triangular = torch.linalg.qr(weight.detach().float())
    return _widen(triangular[:rank], orthonormal[:, :rank], lora_rank, generator)


def _widen(down: Tensor, up: Tensor, lora_rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bring A and B to `lora_rank` where the weight has fewer directions: an ordinary start for the rest."""
    lacking = lora_rank - down.shape[0]
    if lacking:
        down = torch.cat([down, draw_down(lacking, down.shape[1], generator).to(down.device)])
        up = torch.cat([up, up.new_zeros(up.shape[0], lacking)], dim=1)
    return down.contiguous(), up.contiguous()
