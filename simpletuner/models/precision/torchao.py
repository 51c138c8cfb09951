"""One linear layer in TorchAO's weight-only formats."""

from __future__ import annotations

from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_


def quantize_layer(layer: nn.Linear, *, kind: str) -> nn.Module:
    """The same layer with its weight in "int8" or "fp8", to be dequantized at each product."""
    # Version 1 of the int8 format is gone; the configurations with activations train nothing.
    config = Int8WeightOnlyConfig(version=2) if kind == "int8" else Float8WeightOnlyConfig()
    quantize_(layer, config)
    return layer
