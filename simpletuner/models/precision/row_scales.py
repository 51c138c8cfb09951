"""Linear layers whose weights are numbers in 8 bits with a scale for each row, and that multiply in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from simpletuner.models.precision.row_products import FORMATS, round_rows, row_product

_NUMBERS, _SCALES = "numbers", "scales"
_aten: Any = torch.ops.aten


class RowScaled(torch.Tensor):
    """A matrix [rows, width] as `numbers` (int8 or float8_e4m3fn) and `scales` [rows] float32.

    It calls itself by the format that it is used in, moves as a whole, and is read by anything else as the full
    matrix; it cannot be written to.
    """

    numbers: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> RowScaled:
        made: RowScaled = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, numbers.shape, dtype=dtype, device=numbers.device, requires_grad=False
        )
        return made

    def __init__(self, numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
        self.numbers, self.scales = numbers, scales

    def dequantize(self) -> Tensor:  # type: ignore[override]
        """The full matrix in its own format."""
        return (self.numbers.float() * self.scales[:, None]).to(self.dtype)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"RowScaled({tuple(self.shape)}, {self.numbers.dtype} for {self.dtype}, {self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], torch.dtype]:
        return [_NUMBERS, _SCALES], self.dtype

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], dtype: torch.dtype, size: Any, stride: Any) -> RowScaled:
        return RowScaled(inner[_NUMBERS], inner[_SCALES], dtype)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (_aten.detach.default, _aten.alias.default, _aten.clone.default):
            own = args[0]
            return cls(function(own.numbers), function(own.scales), own.dtype)
        if function is _aten._to_copy.default:
            own, dtype = args[0], kwargs.get("dtype") or args[0].dtype
            moved = {"device": kwargs.get("device"), "non_blocking": kwargs.get("non_blocking", False)}
            return cls(function(own.numbers, **moved), function(own.scales, **moved), dtype)
        if function._schema.is_mutable:
            raise TypeError(f"a weight in 8 bits cannot be changed ({function})")
        full = [value.dequantize() if isinstance(value, cls) else value for value in args]
        return function(*full, **kwargs)


class RowScaledLinear(nn.Linear):
    """A frozen linear layer that multiplies in the format of its weight, forward and backward."""

    def __init__(self, layer: nn.Linear, weight: RowScaled) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that its class has
        weight: Any = self.weight
        return row_product(input, weight.numbers, weight.scales, self.bias)


class RowScales:
    """A weight in "int8" or "fp8" (e4m3) with a scale for each row; fulfils `storage.Storage`."""

    package = "torch"

    def __init__(self, kind: str) -> None:
        self._dtype = FORMATS[kind]

    def quantize(self, layer: nn.Linear) -> nn.Module:
        numbers, scales = round_rows(layer.weight.data, self._dtype)
        return RowScaledLinear(layer, RowScaled(numbers, scales[:, 0].contiguous(), layer.weight.dtype))

    def tensors(self, layer: nn.Module) -> dict[str, Tensor]:
        weight: Any = layer.get_parameter("weight")
        return {_NUMBERS: weight.numbers, _SCALES: weight.scales}

    def rebuild(self, layer: nn.Linear, tensors: Mapping[str, Tensor]) -> nn.Module:
        numbers, scales = tensors[_NUMBERS], tensors[_SCALES]
        shape = (layer.out_features, layer.in_features)
        if (numbers.shape, scales.shape, numbers.dtype) != (torch.Size(shape), torch.Size(shape[:1]), self._dtype):
            raise ValueError(f"a weight of {shape} is stored as {tuple(numbers.shape)} in {numbers.dtype}")
        return RowScaledLinear(layer, RowScaled(numbers, scales, layer.weight.dtype))
