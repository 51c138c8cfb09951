"""One noise level per latent frame: what the transformer needs where the first frame is cleaner than the rest.

Diffusers takes one time per clip or one per token; the latter makes every block keep 6 D numbers for each token.
Only as many times differ as there are latent frames, so here the time embedding has one row per latent frame, and
a block applies each row to the tokens of its frame by broadcasting. Nothing of the size of the tokens is added.
This module must not know why levels differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from simpletuner.models.ltxvideo.norms import modulated


def accept_frame_times(transformer: nn.Module) -> None:
    """Let the blocks of an LTX-Video transformer take a time embedding [B, F, 6 D] beside [B, 1, 6 D] and [B, S, 6 D].

    Done where the model is loaded, so that whatever wraps a block later (offloading, compilation) wraps this.
    """
    blocks: Any = transformer.transformer_blocks
    for block in blocks:
        block.forward = MethodType(_forward, block)


def _forward(
    block: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    encoder_attention_mask: Tensor | None = None,
) -> Tensor:
    """A block's own computation, with `temb` [B, F, 6 D] for tokens [B, S, D] of which S / F belong to each row."""
    rows = block.scale_shift_table.to(temb.device) + temb.unflatten(2, (block.scale_shift_table.shape[0], -1))
    shift_self, scale_self, gate_self, shift_ff, scale_ff, gate_ff = rows[:, :, :, None].unbind(2)  # [B, F, 1, D]

    tokens = _by_frame(hidden_states, temb.size(1))
    shown = modulated(tokens, scale_self, shift_self, block.norm1.eps).flatten(1, 2)
    attended = block.attn1(hidden_states=shown, encoder_hidden_states=None, image_rotary_emb=image_rotary_emb)
    hidden_states = _added(tokens, attended, gate_self)

    hidden_states = hidden_states + block.attn2(
        hidden_states,
        encoder_hidden_states=encoder_hidden_states,
        image_rotary_emb=None,
        attention_mask=encoder_attention_mask,
    )

    tokens = _by_frame(hidden_states, temb.size(1))
    shown = modulated(tokens, scale_ff, shift_ff, block.norm2.eps).flatten(1, 2)
    return _added(tokens, block.ff(shown), gate_ff)


def _added(tokens: Tensor, more: Tensor, gate: Tensor) -> Tensor:
    """Tokens [B, F, S / F, D] with [B, S, D] times the rows [B, F, 1, D] of their frames, as [B, S, D]."""
    return torch.addcmul(tokens, _by_frame(more, gate.size(1)), gate).flatten(1, 2)


def _by_frame(tokens: Tensor, frames: int) -> Tensor:
    """Tokens [B, S, D] as [B, F, S / F, D]: a view, because tokens are ordered by frame."""
    ordered: Tensor = tokens.unflatten(1, (frames, -1))
    return ordered


@contextlib.contextmanager
def last_layer_by_frame(transformer: Any, frames: int) -> Iterator[None]:
    """While open, the model's last modulation takes one row per latent frame.

    The model multiplies its normalised tokens by [B, F, D]; given as [S / F, B, F, D] they fit by broadcasting. Its
    output then has that order too; `tokens_of` puts it right.
    """

    def frames_last(_: nn.Module, __: Any, tokens: Tensor) -> Tensor:
        return _by_frame(tokens, frames).permute(2, 0, 1, 3)

    hook = transformer.norm_out.register_forward_hook(frames_last)
    try:
        yield
    finally:
        hook.remove()


def tokens_of(output: Tensor) -> Tensor:
    """The model's output [S / F, B, F, C] under `last_layer_by_frame`, as tokens [B, S, C]."""
    return output.permute(1, 2, 0, 3).flatten(1, 2)
