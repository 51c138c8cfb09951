"""How the blocks attend: the arithmetic of Diffusers' processor, with a choice of kernel.

A kernel that takes no mask never sees cross-attention, and one without gradients never sees training; PyTorch chooses
there. On a CPU the backward pass in bfloat16 is the slowest part of a small model's step; see `_WideBackward`.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, Final, cast

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from simpletuner.config.catalogs.attention import ATTENTION, AttentionRow
from simpletuner.core.errors import UserError
from simpletuner.models.adapters.joint import project
from simpletuner.models.ltxvideo.norms import normed
from simpletuner.models.ltxvideo.rotation import RotaryTables, Turns

# Queries times head size up to which the wide backward pass is the faster one; where it is not, the copies would also
# begin to count as memory. Measured: docs/lab_notes.md, "Attention on a CPU".
_WIDE_UP_TO: Final = 65_536


def choose_attention(transformer: nn.Module, mechanism: str, *, compiled: bool = False) -> None:
    """Let every attention layer of an LTX-Video transformer compute by the kernel of that name.

    Args:
        compiled: Whether the blocks will be; see `RotaryTables`.

    Raises:
        UserError: If its package is not installed.
    """
    row = ATTENTION[mechanism]
    if not row.is_installed:
        raise UserError(
            f"attention_mechanism '{mechanism}': the package '{row.package}' is not installed",
            "",
            f"Install {row.install}, or set attention_mechanism to diffusers",
        )
    processor, model = _Processor(mechanism), cast("Any", transformer)
    model.rope = RotaryTables(model.rope, shares=not compiled)
    for block in model.transformer_blocks:
        for layer in (block.attn1, block.attn2):
            layer.set_processor(processor)
            # Diffusers' own forward inspects the signature of the processor at each call.
            layer.forward = MethodType(_forward, layer)


def _forward(
    layer: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    image_rotary_emb: Turns | None = None,
) -> Tensor:
    attended: Tensor = layer.processor(
        layer, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb=image_rotary_emb
    )
    return attended


class _Processor:
    """Queries, keys and values of one layer, normed and rotated; what attends to what is `attend`'s."""

    # Diffusers sets these on processors; it reads neither here.
    _attention_backend = None
    _parallel_config = None

    def __init__(self, mechanism: str) -> None:
        self._chosen = ATTENTION[mechanism]
        self._trained = self._chosen if self._chosen.trains else ATTENTION["diffusers"]

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Turns | None = None,
    ) -> Tensor:
        """Attention of tokens [B, S, D] to themselves or to text [B, T, D].

        Args:
            attn: The layer.
            hidden_states: What asks.
            encoder_hidden_states: What is asked; None for the tokens themselves.
            attention_mask: [B, 1, T], added to the scores.
            image_rotary_emb: How the tokens' places turn them.
        """
        if encoder_hidden_states is None:
            query, key, value = project((attn.to_q, attn.to_k, attn.to_v), hidden_states)
        else:
            (query,) = project((attn.to_q,), hidden_states)
            key, value = project((attn.to_k, attn.to_v), encoder_hidden_states)
        query, key = (normed(part, norm, image_rotary_emb) for part, norm in ((query, attn.norm_q), (key, attn.norm_k)))
        mask = None if attention_mask is None else attention_mask[:, None]
        row = self._trained if torch.is_grad_enabled() else self._chosen
        query, key, value = (part.unflatten(2, (attn.heads, -1)) for part in (query, key, value))
        attended = attend(query, key, value, mask, row).flatten(2, 3).to(query.dtype)
        (shown,) = project((attn.to_out[0],), attended)
        dropped: Tensor = attn.to_out[1](shown)
        return dropped


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, row: AttentionRow) -> Tensor:
    """softmax(query key^T / sqrt(D) + mask) value, by the kernel of a row.

    Args:
        query: [B, S, H, D]; key, value: [B, T, H, D].
        mask: [B, 1, 1, T] or None.
        row: The kernel; where it takes no mask and there is one, PyTorch chooses.

    Returns:
        [B, S, H, D]
    """
    if mask is not None and not row.masks:
        row = ATTENTION["diffusers"]
    if row.package:
        attended: Tensor = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=row.target)
        return attended
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    if row.target:
        with sdpa_kernel(SDPBackend.__members__[row.target]):
            return functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)
    if _profits(query):
        wide: Tensor = _WideBackward.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
        return wide.transpose(1, 2)
    return functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)


def _profits(query: Tensor) -> bool:
    """Whether a backward pass is to come, on a CPU, for so few queries that it is faster in float32."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return False
    return query.size(2) * query.size(3) <= _WIDE_UP_TO


class _WideBackward(torch.autograd.Function):
    """PyTorch's flash kernel for CPUs: forward as it is, in bfloat16, backward in float32.

    What is kept for the backward pass stays in bfloat16. The gradients are nearer to the true ones than those of the
    kernel in bfloat16, which rounds between its products.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[B, H, S, D]."""
        attended: Tensor
        attended, spread = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask
        )
        ctx.save_for_backward(query, key, value, attended, spread, mask)
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        """Gradients of query, key and value."""
        query, key, value, attended, spread, mask = ctx.saved_tensors
        wide = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(part.float() for part in (gradient, query, key, value, attended)),
            spread,
            0.0,
            False,
            attn_mask=None if mask is None else mask.float(),
        )
        of_query, of_key, of_value = (part.to(gradient.dtype) for part in wide)
        return of_query, of_key, of_value, None
