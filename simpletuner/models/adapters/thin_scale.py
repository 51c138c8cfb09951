"""A LoRA layer's product with alpha / r put on the thin vector between its two matrices.

PEFT multiplies what comes out of B, a tensor as large as the layer's output, forward and backward. On the r numbers
between A and B the same factor costs nothing, and a factor of 1 is left out: then not a bit changes.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor


class ThinScale(LoraVariant):  # type: ignore[misc]
    """PEFT's way to change the forward pass of one LoRA; its files and its matrices are those of a plain one."""

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **_: Any) -> None:
        """Nothing is added to a plain LoRA."""

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """result + B (alpha / r) A x; inputs [.., in] and results [.., out], in PEFT's number formats."""
        thin = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        factor = module.scaling[active_adapter]
        if factor != 1:
            thin = thin * factor
        added: Tensor = result + module.lora_B[active_adapter](thin)
        return added

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight with the adapter in it, as PEFT's own merge gives it."""
        merged: Tensor = orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)
        return merged

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """The same, in place."""
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight without it again."""
        plain: Tensor = orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)
        return plain


def scale_thinly(layer: LoraLayer, adapter: str) -> None:
    """Let one plain LoRA of a layer be computed this way; DoRA and other variants stay as they are."""
    layer.lora_variant.setdefault(adapter, ThinScale())
