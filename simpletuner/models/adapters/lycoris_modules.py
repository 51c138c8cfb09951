"""Layers of the LyCORIS library (4.1.3), mended where they would not train, save or load as a run needs it.

- `full`: trained in another format than the model is computed in; its file gives the trained weights back.
- `glora`: likewise trained in another format.
- `dylora`: draws the part of its rank from torch's generator, which a run seeds for each step and which gradient
  checkpointing repeats; acts at its whole rank when it does not train; its files are those of a LoRA and load again.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import lycoris.wrapper
import torch
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from torch import Tensor, nn
from torch.nn import functional


class WholeWeightLayer(FullModule):  # type: ignore[misc]
    """A layer whose own weight is trained."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.op = _linear_in_format_of_input

    def custom_state_dict(self) -> dict[str, Tensor]:
        """Differences in float32: of two bfloat16 weights they are exact, so that loading gives the weight back."""
        return {f"diff{part}": now.detach().float().cpu() - before for part, now, before in self._pairs()}

    def load_weight_prehook(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Base + difference, whatever has been trained meanwhile."""
        for part, now, before in self._pairs():
            name = "bias" if part else "weight"
            difference = state_dict.pop(f"{prefix}diff{part}")
            state_dict[f"{prefix}{name}"] = (before + difference.float().cpu()).to(now.dtype)

    def restore(self) -> None:
        """Give the layer its own weights back, where the trained ones are."""
        super().restore()
        layer, device = self.org_module[0], self.weight.device
        for name in ("weight", "bias"):
            tensor = getattr(layer, name)
            if tensor is not None:
                setattr(layer, name, nn.Parameter(tensor.detach().to(device), requires_grad=False))

    def _pairs(self) -> list[tuple[str, Tensor, Tensor]]:
        """(end of the name, trained tensor, float32 base on the CPU) of the weight and, if there is one, the bias."""
        pairs = [("", self.weight, self._org_weight[0].float())]
        if self.bias is not None:
            pairs.append(("_b", self.bias, self.org_bias[0].float()))
        return pairs


class AnyFormatGLoRALayer(GLoRAModule):  # type: ignore[misc]
    """GLoRA multiplies the layer's weight with trained matrices: both in the format of the latter."""

    @property
    def org_weight(self) -> Tensor:
        weight: Tensor = self.org_module[0].weight
        return weight.to(self.a1.weight.dtype)


class PartialRankLayer(DyLoraModule):  # type: ignore[misc]
    """A LoRA of which each training step uses the first blocks of the rank and trains the last of these.

    Source: Valipour et al. 2022 (arXiv 2210.07558), with frozen earlier blocks.
    """

    def get_random_rank_weight(self) -> tuple[Tensor, Tensor, Tensor]:
        last = self.block_count - 1
        if self.training:
            last = int(torch.randint(self.block_count, ()))
        weights: tuple[Tensor, Tensor, Tensor] = self.get_weight(last * self.block_size)
        return weights

    def bypass_forward_diff(self, x: Tensor, scale: float = 1.0, rank: int | None = None) -> Tensor:
        down, up, strength = self.get_random_rank_weight() if rank is None else self.get_weight(rank)
        change = functional.linear(functional.linear(x, down.to(x.dtype)), up.to(x.dtype))
        return change * (scale * strength)

    def custom_state_dict(self) -> dict[str, Tensor]:
        """A LoRA at its whole rank. Its loaders divide alpha by the rank, training divides it by the blocks."""
        return {
            "alpha": self.alpha * self.block_size,
            "lora_up.weight": torch.cat(list(self.up_list), dim=1),
            "lora_down.weight": torch.cat(list(self.down_list)),
        }

    def load_weight_prehook(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        up, down = (state_dict.pop(f"{prefix}lora_{part}.weight") for part in ("up", "down"))
        for number in range(self.block_count):
            block = slice(number * self.block_size, (number + 1) * self.block_size)
            state_dict[f"{prefix}up_list.{number}"] = up[:, block]
            state_dict[f"{prefix}down_list.{number}"] = down[block]
        state_dict[f"{prefix}alpha"] = state_dict[f"{prefix}alpha"] / self.block_size


_MENDED = {"full": WholeWeightLayer, "glora": AnyFormatGLoRALayer, "dylora": PartialRankLayer}


@contextlib.contextmanager
def mended_kinds() -> Iterator[None]:
    """While open, networks are built with the layers of this module."""
    table: dict[str, Any] = lycoris.wrapper.network_module_dict
    before = dict(table)
    table.update(_MENDED)
    try:
        yield
    finally:
        table.update(before)


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """The library tells each of its steps in its own log, and some on the terminal; what matters is told by us."""
    library = logging.getLogger("LyCORIS")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        library.setLevel(level)


def _linear_in_format_of_input(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
