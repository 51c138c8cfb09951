"""Frozen weights that leave and come back: nothing changes, nothing of theirs stays on the device meanwhile."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpletuner.models.precision.quantize import quantize_blocks
from simpletuner.runtime.absence import Absence
from simpletuner.runtime.frozen_weights import frozen_weights


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)) for _ in range(2))
        self.adapter = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.adapter(x)


@pytest.mark.parametrize("precision", ["no_change", "int8-quanto", "nf4-bnb"])
def test_away_and_back(precision: str) -> None:
    torch.manual_seed(0)
    model: Any = Small().to(torch.bfloat16).requires_grad_(False)
    quantize_blocks(model, precision, "blocks")
    model.adapter.requires_grad_(True)
    trained, frozen = model.adapter.weight, model.blocks[0][0].bias
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    before = model(x)
    absence = Absence(model, torch.device("cpu"))
    for _ in range(2):
        here = [weakref.ref(leaf.untyped_storage()) for weight in frozen_weights(model) for leaf in weight.leaves]
        with absence.away():
            assert all(storage() is None for storage in here)
            assert model.adapter.weight is trained
        assert torch.equal(model(x), before)
    assert model.blocks[0][0].bias is frozen  # plain weights are still the same parameters
    model(x).sum().backward()
    assert trained.grad is not None
