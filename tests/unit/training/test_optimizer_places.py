"""Updating in the backward pass and on the CPU: the same steps as ever, and a state that continues bit for bit."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.optimizer_settings import optimizer_arguments
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.training.optim.offloaded import OffloadedOptimizer
from simpletuner.training.optim.released import ReleasedOptimizer
from simpletuner.training.optimizer_state import join_state, split_state

# bitsandbytes says on a machine without CUDA that nothing is paged there.
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")

RELEASING = [name for name in OPTIMIZERS if OPTIMIZERS[name].releases]
NAMES = ["0.weight", "1.weight", "2.weight"]


def begin(name: str, place: str, clip: float = 0.0) -> tuple[nn.Sequential, Any]:
    row = OPTIMIZERS[name]
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(72, 72, bias=False) for _ in range(3)))
    model.to(torch.bfloat16 if row.parameter_dtype == "bf16" else torch.float32)
    arguments: dict[str, Any] = optimizer_arguments(OptimizerSection(optimizer=name))

    def build(groups: Any, number: int) -> Any:
        seeded = {"seed": 10 + number} if row.takes_seed else {}
        eager = {"compiled": False} if row.compiles else {}
        try:
            return OPTIMIZERS.load(name)(groups, lr=1e-2, **{**arguments, **seeded, **eager})
        except ImportError as error:
            pytest.skip(f"needs {error.name}")

    groups = [{"params": [model[0].weight]}, {"params": [model[1].weight, model[2].weight], "weight_decay": 0.0}]
    if name in ("torch-adafactor", "torch-asgd") or "weight_decay" not in arguments:
        groups = [{"params": [layer.weight for layer in model]}]
    if place == "released":
        return model, ReleasedOptimizer(groups, build, clip, row.group_state)
    return model, OffloadedOptimizer(groups, build) if place == "offloaded" else build(groups, 0)


def train(model: nn.Sequential, optimizer: Any, steps: range, clip: float = 0.0) -> list[Tensor]:
    """Take the steps; gives the gradients' norm at each."""
    norms = []
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        inputs = torch.randn(5, 72, generator=torch.Generator().manual_seed(step)).to(model[0].weight.dtype)
        model(inputs).float().square().mean().backward()
        if isinstance(optimizer, ReleasedOptimizer):
            assert all(layer.weight.grad is None for layer in model)
            norms.append(optimizer.gradient_norm())
        else:
            gradients = [layer.weight.grad for layer in model]
            norms.append(torch.linalg.vector_norm(torch.stack([g.float().norm() for g in gradients])))
            for gradient in gradients if clip else ():
                gradient.clamp_(-clip, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norms


def weights(model: nn.Sequential) -> list[Tensor]:
    return [layer.weight.detach().clone() for layer in model]


@pytest.mark.parametrize("name", ["torch-adamw", "torch-sgd", "optimi-lion", "optimi-stableadamw", "bnb-lion8bit"])
def test_released_gradients_train_alike(name: str) -> None:
    (plain, one), (released, other) = begin(name, "plain"), begin(name, "released", clip=1e-3)
    norms, theirs = train(plain, one, range(4), clip=1e-3), train(released, other, range(4))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(released), strict=True))
    assert torch.allclose(torch.stack(norms), torch.stack(theirs))


@pytest.mark.parametrize("name", RELEASING)
def test_released_gradients_continue_bit_for_bit(name: str) -> None:
    straight, optimizer = begin(name, "released")
    before = weights(straight)
    train(straight, optimizer, range(3))
    group_state = OPTIMIZERS[name].group_state
    tensors, numbers = split_state(optimizer, NAMES, group_state)
    numbers, middle = json.loads(json.dumps(numbers)), weights(straight)
    train(straight, optimizer, range(3, 6))
    resumed, again = begin(name, "released")
    with torch.no_grad():
        for layer, weight in zip(resumed, middle, strict=True):
            layer.weight.copy_(weight)
    join_state(again, NAMES, tensors, numbers)
    train(resumed, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))
    assert not torch.equal(before[0], middle[0])


def test_released_parameters_of_one_kind_are_not_rounded_alike() -> None:
    model, optimizer = begin("adamw_bf16", "released")
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(1.0)
    for layer in model:
        layer.weight.grad = torch.ones_like(layer.weight)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for layer in model:
        optimizer._move(layer.weight)
    first, second, third = weights(model)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_a_broken_gradient_does_not_reach_the_weights() -> None:
    model, optimizer = begin("torch-sgd", "released")
    before = weights(model)
    optimizer.param_groups[0]["lr"] = 1.0
    (model(torch.ones(1, 72)).sum() * float("nan")).backward()
    assert not torch.isfinite(optimizer.gradient_norm())
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if OPTIMIZERS[name].offloads])
def test_an_optimizer_on_the_cpu_trains_alike_and_continues(name: str) -> None:
    (plain, one), (offloaded, other) = begin(name, "plain"), begin(name, "offloaded")
    train(plain, one, range(3))
    train(offloaded, other, range(3))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(offloaded), strict=True))
    tensors, numbers = split_state(other, NAMES, OPTIMIZERS[name].group_state)
    resumed, again = begin(name, "offloaded")
    with torch.no_grad():
        for layer, weight in zip(resumed, weights(offloaded), strict=True):
            layer.weight.copy_(weight)
    join_state(again, NAMES, tensors, numbers)
    train(resumed, again, range(3, 5))
    train(plain, one, range(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(resumed), strict=True))
