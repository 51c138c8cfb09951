"""Rotary embedding: the turn of each token's pairs of channels, computed once for a grid, applied in one product.

Diffusers' tables hold each cosine and sine twice, for the two channels of a pair, and its formula takes eight
operations forward and ten backward. A pair is one complex number here and its turn another. The tables depend on the
coordinates alone, so they are made once and not in every pass over the model.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, NamedTuple

import torch
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed
from torch import Tensor

# Tables that are kept beside those in use, so that training and videos, or two sizes of clips, do not undo each other.
KEPT_BYTES: Final = 64_000_000


class Turns(NamedTuple):
    """What the blocks are given as `image_rotary_emb`.

    Attributes:
        there: [B, S, D / 2, 2] float32, cosine and sine of each pair's angle; B is 1 where all clips share them.
        back: The same with the sines negated: the way back.
    """

    there: Tensor
    back: Tensor

    @property
    def nbytes(self) -> int:
        """Memory of both."""
        return self.there.nbytes + self.back.nbytes


class RotaryTables(LTXVideoRotaryPosEmbed):  # type: ignore[misc]
    """Diffusers' module, which remembers what it made of a tensor of coordinates, and gives it as `Turns`."""

    def __init__(self, plain: LTXVideoRotaryPosEmbed, *, shares: bool) -> None:
        """
        Args:
            plain: The module of which this one takes the place; it has no weights.
            shares: Whether clips with equal coordinates share one table. Compiled blocks want one shape, whatever
                a batch happens to hold.
        """
        super().__init__(
            dim=plain.dim, base_num_frames=plain.base_num_frames, base_height=plain.base_height, theta=plain.theta,
            base_width=plain.base_width, patch_size=plain.patch_size, patch_size_t=plain.patch_size_t,
        )  # fmt: skip
        self._shares = shares
        # By the identity of the coordinates, which are kept with them.
        self._kept: OrderedDict[int, tuple[Tensor, Turns]] = OrderedDict()

    def forward(
        self,
        hidden_states: Tensor,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        rope_interpolation_scale: Any = None,
        video_coords: Tensor | None = None,
    ) -> Turns:
        """The turns of each token, from coordinates [B, 3, S] or from a grid; see `positions.token_coordinates`."""
        if video_coords is None:
            return self._make(super().forward(hidden_states, num_frames, height, width, rope_interpolation_scale))
        key = id(video_coords)
        known, turns = self._kept.get(key, (None, None))
        if turns is not None and known is video_coords:  # a copy of this module holds copies under the old keys
            self._kept.move_to_end(key)
            return turns
        # Tables made in inference mode could not be used in training.
        with torch.inference_mode(False), torch.no_grad():
            equal = video_coords.stride(0) == 0 or len(video_coords) == 1
            turns = self._make(super().forward(hidden_states, video_coords=video_coords[:1] if equal else video_coords))
            if equal and not self._shares:
                turns = Turns(*(part.repeat(len(video_coords), 1, 1, 1) for part in turns))
        self._keep(key, video_coords, turns)
        return turns

    @staticmethod
    def _make(tables: tuple[Tensor, Tensor]) -> Turns:
        cosines, sines = (table[..., ::2] for table in tables)
        return Turns(torch.stack([cosines, sines], dim=-1), torch.stack([cosines, -sines], dim=-1))

    def _keep(self, key: int, coordinates: Tensor, turns: Turns) -> None:
        self._kept[key] = coordinates, turns
        while len(self._kept) > 1 and sum(kept.nbytes for _, kept in self._kept.values()) > turns.nbytes + KEPT_BYTES:
            self._kept.popitem(last=False)


def rotated(tokens: Tensor, turns: Turns) -> Tensor:
    """Tokens [B, S, D], their pairs of channels turned; computed in float32, given back in the tokens' format."""
    if torch.compiler.is_compiling() or tokens.device.type not in ("cpu", "cuda"):
        # The compiler makes one kernel of it, and knows no complex numbers.
        (first, second), (cosines, sines) = _pairs(tokens.float()).unbind(-1), turns.there.unbind(-1)
        both = torch.stack([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
        return both.flatten(-2).to(tokens.dtype)
    turned: Tensor = _Rotated.apply(tokens, *turns)  # type: ignore[no-untyped-call]
    return turned


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return turn(tokens.float(), there).to(tokens.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return turn(gradient.float(), ctx.saved_tensors[0]).to(gradient.dtype), None, None


def turn(numbers: Tensor, table: Tensor) -> Tensor:
    """Numbers [B, S, D] float32 or float64, each pair times its number of a table [B or 1, S, D / 2, 2]."""
    product = torch.view_as_complex(_pairs(numbers.contiguous())) * torch.view_as_complex(table)
    return torch.view_as_real(product).flatten(-2)


def _pairs(numbers: Tensor) -> Tensor:
    pairs: Tensor = numbers.unflatten(-1, (-1, 2))
    return pairs
