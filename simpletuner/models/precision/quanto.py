"""Linear layers in Optimum-Quanto's formats: weights only, activations stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optimum.quanto
import torch
from optimum.quanto.library.extensions import get_extension, is_extension_available
from optimum.quanto.nn import QLinear
from torch import Tensor, nn

_WEIGHT = "weight."


class Quanto:
    """A weight in "qint8" or "qint4"; fulfils `storage.Storage`."""

    package = "optimum-quanto"

    def __init__(self, kind: str) -> None:
        self._kind = optimum.quanto.qtypes[kind]
        if kind == "qint4":
            unpack_without_compiler()

    def quantize(self, layer: nn.Linear) -> nn.Module:
        """Source: optimum-quanto's own steps, `quantize` and `freeze`, for a single module."""
        quantized: nn.Module = QLinear.from_module(layer, weights=self._kind)
        quantized.freeze()  # type: ignore[operator]
        return quantized

    def tensors(self, layer: nn.Module) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        weight: Any = layer.get_parameter("weight")
        weight.save_to_state_dict(state, _WEIGHT, False)
        return {name.removeprefix(_WEIGHT): tensor for name, tensor in state.items()}

    def rebuild(self, layer: nn.Linear, tensors: Mapping[str, Tensor]) -> nn.Module:
        quantized: nn.Module = QLinear(
            layer.in_features, layer.out_features, layer.bias is not None, weights=self._kind,
            dtype=layer.weight.dtype, device="meta",
        )  # fmt: skip
        device = next(iter(tensors.values())).device
        scales = {name: torch.ones((), dtype=layer.weight.dtype, device=device) for name in _SCALES_OF_ACTIVATIONS}
        state = {**{_WEIGHT + name: tensor for name, tensor in tensors.items()}, **scales}
        if layer.bias is not None:
            state["bias"] = layer.bias.data
        quantized.load_state_dict(state, strict=True, assign=True)
        return quantized.requires_grad_(False)


# Buffers that a layer without quantized activations has and does not use.
_SCALES_OF_ACTIVATIONS = ("input_scale", "output_scale")


class _PlainUnpacking:
    """Stands in for Quanto's compiled extension: unpacks with PyTorch's own operations, which give the same
    integers; whatever else is asked for comes from the extension, compiled then."""

    def __init__(self, extension: Any) -> None:
        self._extension = extension

    def unpack(self, packed: Tensor, bits: int) -> Tensor:
        """Rows of values that lie beside each other in the bits of a byte, below each other."""
        return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])

    def __getattr__(self, name: str) -> Any:
        self._extension._lib = None
        try:
            return getattr(self._extension.lib, name)
        finally:
            self._extension._lib = self


def unpack_without_compiler() -> None:
    """Keep Quanto (0.2.7) from compiling a kernel at the first use of 4-bit weights.

    Its own fallback in plain PyTorch is never reached where an extension is registered: that one wants a C++ compiler
    (on CUDA also nvcc), a path without spaces and half a minute, for a shift and a mask.
    """
    for name in ("quanto_cpp", "quanto_cuda", "quanto_hip", "quanto_mps"):
        if is_extension_available(name):
            extension = get_extension(name)
            if extension._lib is None:
                extension._lib = _PlainUnpacking(extension)
