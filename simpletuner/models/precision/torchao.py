"""Linear layers in TorchAO's weight-only formats."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

# The library names tensors after a layer and its weight.
_NAME = "layer.weight"
_DESCRIPTION = "description"


class TorchAO:
    """A weight in "int8" or "fp8", to be dequantized at each product; fulfils `storage.Storage`."""

    package = "torchao"

    def __init__(self, kind: str) -> None:
        # Version 1 of the int8 format is gone; the configurations with activations train nothing.
        self._config = Int8WeightOnlyConfig(version=2) if kind == "int8" else Float8WeightOnlyConfig()

    def quantize(self, layer: nn.Linear) -> nn.Module:
        quantize_(layer, self._config)
        return layer

    def tensors(self, layer: nn.Module) -> dict[str, Tensor]:
        """The library's own flat tensors, and its description of them as the bytes of a JSON text."""
        tensors, description = flatten_tensor_state_dict({_NAME: layer.get_parameter("weight").data})
        text = json.dumps(description, sort_keys=True).encode()
        return {**tensors, _DESCRIPTION: torch.frombuffer(bytearray(text), dtype=torch.uint8)}

    def rebuild(self, layer: nn.Linear, tensors: Mapping[str, Tensor]) -> nn.Module:
        description = json.loads(bytes(tensors[_DESCRIPTION].cpu().numpy()))
        flat = {name: tensor for name, tensor in tensors.items() if name != _DESCRIPTION}
        weights, left_over = unflatten_tensor_state_dict(flat, description)
        if left_over or _NAME not in weights:
            raise ValueError(f"the stored weight lacks tensors, or has others: {', '.join(left_over)}")
        layer.weight = nn.Parameter(weights[_NAME], requires_grad=False)
        return layer
