"""LoKr that begins with a small change instead of none (`init_lokr_norm`)."""

from __future__ import annotations

import math

import torch
from lycoris import LycorisNetwork
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn


def start_lokr_near_base(network: LycorisNetwork, norm: float, dtype: torch.dtype) -> None:
    """Let every LoKr change begin as norm * (mean + deviation * noise) of the layer's weights, repeated.

    The first factor is all ones, the second holds the numbers; where it is made of two thin matrices, these are drawn
    so that their product has that deviation, about zero. Draws from torch's generator.

    Args:
        network: Before it is applied; layers of other kinds stay as they are.
        norm: Size of the change as a share of the weights, above 0.
        dtype: Number format in which the layers compute.
    """
    for layer in network.loras:
        if not isinstance(layer, LokrModule):
            continue
        weight = _full_weight(layer.org_module[0], dtype)
        mean, deviation = float(weight.mean()), float(weight.std())
        with torch.no_grad():
            layer.lokr_w1.fill_(1.0)
            if layer.use_w2:
                layer.lokr_w2.normal_(norm * mean, norm * deviation)
                continue
            # A product of r pairs of draws of deviation d deviates by d * d * sqrt(r); alpha / r comes on top.
            each = math.sqrt(norm * deviation / (abs(layer.scale) * math.sqrt(layer.lora_dim)))
            layer.lokr_w2_a.normal_(0.0, each)
            layer.lokr_w2_b.normal_(0.0, each)


@torch.no_grad()
def _full_weight(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The weight of a layer, transposed, in float32, whatever it is stored in: its answers to the unit vectors."""
    device = next(layer.parameters()).device
    units = torch.eye(layer.in_features, dtype=dtype, device=device)
    transposed: Tensor = layer(units).float() - layer(torch.zeros_like(units[:1])).float()
    return transposed
