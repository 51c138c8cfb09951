"""Root-mean-square norms and what follows them in a block: scale and shift, or the rotation by a token's place.

On a CPU each is one node of the graph with the derivative in closed form. The plain formulas are twenty to thirty
operations, each a pass over all tokens, and keep a float32 copy of them; the node keeps what went in and one number per
token. Elsewhere PyTorch has one kernel for the norm, and a compiler fuses all of it.

With n the number of channels, y = x r w + b where r = 1 / sqrt(mean(x^2) + eps), and for a gradient g of y:
dx = r (w g - x r^2 mean(w g x)), dw = sum(g x r), db = sum(g).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from simpletuner.models.ltxvideo.rotation import Turns, rotated, turn


def modulated(tokens: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Tokens [.., D], normed, times 1 + scale, plus shift, both of which broadcast to them."""
    if _is_one_node(tokens):
        return _apply(tokens, 1 + scale, shift, None, eps)
    return torch.addcmul(shift, functional.rms_norm(tokens, tokens.shape[-1:], None, eps), 1 + scale)


def normed(tokens: Tensor, norm: Any, turns: Turns | None = None) -> Tensor:
    """Tokens [B, S, D] by a module `torch.nn.RMSNorm`, then rotated where there are turns."""
    if _is_one_node(tokens):
        return _apply(tokens, norm.weight, None, turns, norm.eps)
    plain: Tensor = norm(tokens)
    return plain if turns is None else rotated(plain, turns)


def _is_one_node(tokens: Tensor) -> bool:
    return tokens.device.type == "cpu" and not torch.compiler.is_compiling()


def _apply(tokens: Tensor, weight: Tensor, shift: Tensor | None, turns: Turns | None, eps: float) -> Tensor:
    there, back = turns or (None, None)
    found: Tensor = _Normed.apply(tokens, weight, shift, there, back, eps)  # type: ignore[no-untyped-call]
    return found


class _Normed(torch.autograd.Function):
    """In float32 (float64 stays) from beginning to end: it rounds once where the plain formulas round twice."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, weight: Tensor, shift: Tensor | None, there: Tensor | None, back: Tensor | None,
        eps: float,
    ) -> Tensor:  # fmt: skip
        kind = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        wide = tokens.to(kind, copy=True)
        lengths = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = lengths.square_().div_(tokens.shape[-1]).add_(eps).rsqrt_()
        wide.mul_(inverse)
        if shift is None:
            wide.mul_(weight)
        else:
            wide = torch.addcmul(shift.to(kind), wide, weight.to(kind))
        if there is not None:
            wide = turn(wide, there)
        ctx.save_for_backward(tokens, weight, inverse, back)
        ctx.shifts = None if shift is None else shift.shape
        return wide.to(tokens.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tokens, weight, inverse, back = ctx.saved_tensors
        wants_tokens, wants_weight, wants_shift, *_ = ctx.needs_input_grad
        wide = gradient.to(inverse.dtype, copy=True) if back is None else turn(gradient.to(inverse.dtype), back)
        plain = tokens.to(inverse.dtype)
        of_tokens = of_weight = of_shift = None
        if wants_shift:
            of_shift = wide.sum_to_size(ctx.shifts).to(gradient.dtype)
        if wants_weight:
            of_weight = (wide * plain).mul_(inverse).sum_to_size(weight.shape).to(weight.dtype)
        if wants_tokens:
            # Not in place where it may be the gradient of the shift itself.
            wide = wide * weight if wants_shift else wide.mul_(weight)
            share = (wide * plain).sum(-1, keepdim=True).mul_(inverse.square()).div_(-tokens.shape[-1])
            of_tokens = wide.addcmul_(plain, share).mul_(inverse).to(tokens.dtype)
        return of_tokens, of_weight, of_shift, None, None, None
