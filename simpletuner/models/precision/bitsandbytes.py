"""One linear layer in bitsandbytes' formats, made by hand: the libraries' own loaders want a GPU."""

from __future__ import annotations

import bitsandbytes
import torch
from torch import nn


def quantize_layer(layer: nn.Linear, *, kind: str) -> nn.Module:
    """A layer with the weight in "nf4" (double quantized) or "int8"; it quantizes when it is moved to its device.

    Source: Dettmers et al. 2023 (arXiv 2305.14314) for NF4, Dettmers et al. 2022 (arXiv 2208.07339) for int8.
    """
    device = layer.weight.device
    shape = (layer.in_features, layer.out_features, layer.bias is not None)
    weight = layer.weight.data.to("cpu")
    quantized: nn.Linear
    if kind == "nf4":
        quantized = bitsandbytes.nn.Linear4bit(
            *shape, compute_dtype=layer.weight.dtype, quant_type="nf4", compress_statistics=True, device="meta"
        )
        quantized.weight = bitsandbytes.nn.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=True
        )
    else:
        quantized = bitsandbytes.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=0.0, device="meta")
        quantized.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    quantized.bias = layer.bias
    return quantized.to(device if device.type != "meta" else torch.device("cpu"))
