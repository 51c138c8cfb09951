"""Linear layers in bitsandbytes' formats, made by hand: the libraries' own loaders want a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bitsandbytes
import torch
from torch import Tensor, nn

_STATE = "quant_state"
_SCALES = "SCB"


class BitsAndBytes:
    """A weight in "nf4" (double quantized) or "int8"; fulfils `storage.Storage`.

    Source: Dettmers et al. 2023 (arXiv 2305.14314) for NF4, Dettmers et al. 2022 (arXiv 2208.07339) for int8.
    """

    package = "bitsandbytes"

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def quantize(self, layer: nn.Linear) -> nn.Module:
        device = layer.weight.device
        weight = layer.weight.data.to("cpu")
        if self._kind == "nf4":
            stored: nn.Parameter = bitsandbytes.nn.Params4bit(
                weight,
                requires_grad=False,
                quant_type="nf4",
                compress_statistics=True,
                blocksize=_block_size(layer.in_features),
            )
        else:
            stored = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        # It is quantized when it is moved to its device.
        return self._around(layer, stored, layer.weight.dtype).to(
            device if device.type != "meta" else torch.device("cpu")
        )

    def tensors(self, layer: nn.Module) -> dict[str, Tensor]:
        weight = layer.get_parameter("weight")
        if self._kind == "nf4":
            return {"weight": weight.data, **weight.quant_state.as_dict(packed=True)}  # type: ignore[attr-defined]
        return {"weight": weight.data, _SCALES: weight.SCB}  # type: ignore[attr-defined]

    def rebuild(self, layer: nn.Linear, tensors: Mapping[str, Tensor]) -> nn.Module:
        data = tensors["weight"]
        if self._kind == "nf4":
            state = {name: tensor for name, tensor in tensors.items() if name != "weight"}
            stored: nn.Parameter = bitsandbytes.nn.Params4bit.from_prequantized(
                data, state, requires_grad=False, device=data.device
            )
        else:
            stored = bitsandbytes.nn.Int8Params(
                data, requires_grad=False, has_fp16_weights=False, CB=data, SCB=tensors[_SCALES]
            )
        return self._around(layer, stored, layer.weight.dtype)

    def _around(self, layer: nn.Linear, weight: nn.Parameter, dtype: torch.dtype) -> nn.Module:
        shape = (layer.in_features, layer.out_features, layer.bias is not None)
        quantized: Any
        if self._kind == "nf4":
            quantized = bitsandbytes.nn.Linear4bit(
                *shape, compute_dtype=dtype, quant_type="nf4", compress_statistics=True, device="meta"
            )
            # On some CPUs the first evaluation would pack the weight anew for a kernel without gradients, and
            # training after it would stop (0.50.2).
            quantized.support_avx512bf16_for_cpu = False
        else:
            quantized = bitsandbytes.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=0.0, device="meta")
        quantized.weight = weight
        quantized.bias = layer.bias
        layer_in_fewer_bits: nn.Module = quantized
        return layer_in_fewer_bits


def _block_size(width: int) -> int:
    """Numbers that share a scale: on a CPU, a block that crosses the end of a row gives wrong weights (0.50.2)."""
    return 32 if width % 64 and not width % 32 else 64
