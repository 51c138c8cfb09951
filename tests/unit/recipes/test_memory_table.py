"""The parts of the memory forecast against live tensors: the small model on the CPU, 2B on the meta device."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.average import AverageSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.data.sample import BucketKey
from simpletuner.maths.sigmas import auto_shift
from simpletuner.models.ltxvideo.cost import LTXCostSource
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.transformer import adapter_targets
from simpletuner.recipes.story import tell_shifts
from simpletuner.training.average import WeightAverage
from simpletuner.training.build import build_trainable
from simpletuner.training.state import build_optimizer


def live_bytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))


@pytest.mark.parametrize("optimizer", ["adamw_bf16", "torch-adamw"])
def test_every_part_of_the_small_model(optimizer: str, miniature: Path) -> None:
    place = ModelSection(pretrained_model_name_or_path=str(miniature))
    config: Any = SimpleNamespace(
        model=ModelSection(), adapter=AdapterSection(lora_rank=8), lycoris=None, precision=PrecisionSection(),
        memory=MemorySection(), optimizer=OptimizerSection(optimizer=optimizer), schedule=ScheduleSection(),
    )  # fmt: skip
    trainable = build_trainable(FAMILY, FAMILY.resolve(place), config, torch.device("cpu"))
    trained = list(trainable.parameters.values())
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    stepped = build_optimizer(trainable, config)
    stepped.step()
    average = WeightAverage(trainable.parameters, AverageSection(use_ema=True), torch.device("cpu"))

    cost, row = LTXCostSource().find(place), OPTIMIZERS[optimizer]
    values = cost.adapter_parameters(tuple(trainable.adapter.layers), 8)
    width = 2 if row.parameter_dtype == "bf16" else 4
    own = {id(parameter) for parameter in trained}
    frozen = [parameter for parameter in trainable.transformer.parameters() if id(parameter) not in own]
    assert cost.stored_bytes("transformer", "no_change", 2) == live_bytes(frozen)
    assert values * width == live_bytes(trained) == live_bytes(parameter.grad for parameter in trained)
    states = [tensor for state in stepped.state.values() for tensor in state.values()
              if isinstance(tensor, Tensor) and tensor.dim()]  # fmt: skip
    assert values * row.state_bytes == live_bytes(states)
    assert values * 4 == live_bytes(average.tensors().values())


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_weights_and_adapter_of_2b(targets: str) -> None:
    cost = LTXCostSource().find(ModelSection(model_flavour="0.9.5"))
    with torch.device("meta"):
        model = LTXVideoTransformer3DModel(num_layers=28)
    assert cost.stored_bytes("transformer", "no_change", 4) == live_bytes(model.parameters())
    block = list(model.transformer_blocks[0].parameters())
    assert cost.stored_bytes("block", "no_change", 4) == live_bytes(block)
    layers = adapter_targets(model, targets)
    shapes = [model.get_submodule(name).weight.shape for name in layers]
    with torch.device("meta"):
        pairs = [torch.empty(16, sum(shape), dtype=torch.bfloat16) for shape in shapes]
    assert 2 * cost.adapter_parameters(tuple(layers), 16) == live_bytes(pairs)
    # Eight bits: a byte for each weight of the blocks' layers, and little more.
    inside = sum(m.weight.numel() for n, m in model.named_modules() if n.startswith("transformer_blocks.")
                 and isinstance(m, torch.nn.Linear))  # fmt: skip
    plain = sum(parameter.numel() for parameter in model.parameters()) - inside
    stored = cost.stored_bytes("transformer", "int8-quanto", 2)
    assert plain * 2 + inside < stored < (plain * 2 + inside) * 1.002


def test_the_automatic_shift_of_each_bucket_is_told() -> None:
    """Trap 43: what a long clip is shifted by stands in the story before step 1."""
    told = tell_shifts([BucketKey(768, 512, 121), BucketKey(64, 64, 9)], FAMILY.grid)
    small, large = told.split("), ")
    assert small.startswith(f"{auto_shift(8):.2f} for ")
    assert large.startswith(f"{auto_shift(6144):.2f} for ")
    assert "6,144 tokens" in large
