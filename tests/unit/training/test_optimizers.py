"""Every optimizer of the catalog moves weights, continues bit for bit, and costs what it states."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.optimizer_settings import optimizer_arguments
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.core.errors import UserError
from simpletuner.runtime.compiler import missing_compiler
from simpletuner.training.optimizer_state import join_state, split_state

NAMES = ["a", "b", "c"]
# bitsandbytes says on a machine without CUDA that nothing is paged there.
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")

SHAPES = [(96, 64), (16, 512), (64,)]


def build(name: str, parameters: list[Any], lr: float = 1e-2) -> torch.optim.Optimizer:
    row = OPTIMIZERS[name]
    arguments: dict[str, Any] = optimizer_arguments(OptimizerSection(optimizer=name))
    if row.takes_seed:
        arguments["seed"] = 3
    if row.compiles:
        arguments["compiled"] = False
    optimizer: torch.optim.Optimizer = load(name)(parameters, lr=1.0 if row.finds_rate else lr, **arguments)
    return optimizer


def load(name: str) -> Any:
    """The class; the test is skipped where its package is not installed."""
    try:
        return OPTIMIZERS.load(name)
    except ImportError as error:
        pytest.skip(f"needs {error.name}")


def make_parameters(name: str) -> list[torch.nn.Parameter]:
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[OPTIMIZERS[name].parameter_dtype]
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def take_steps(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in parameters:
            # A bowl around zero with noise: every optimizer must get nearer to its middle.
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.grad = (parameter.detach().float() + noise).to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_goes_down_and_continues_bit_for_bit(name: str) -> None:
    straight = make_parameters(name)
    begun = [parameter.detach().clone() for parameter in straight]
    optimizer = build(name, straight)
    take_steps(optimizer, straight, range(4))
    tensors, numbers = split_state(optimizer, NAMES, OPTIMIZERS[name].group_state)
    numbers = json.loads(json.dumps(numbers))
    stopped = [torch.nn.Parameter(parameter.detach().clone()) for parameter in straight]
    take_steps(optimizer, straight, range(4, 8))

    resumed = build(name, stopped)
    join_state(resumed, NAMES, tensors, numbers)
    take_steps(resumed, stopped, range(4, 8))
    for one, other, before in zip(straight, stopped, begun, strict=True):
        assert torch.equal(one, other), name
        assert one.detach().float().square().mean() < before.float().square().mean()


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if OPTIMIZERS[name].group_state])
def test_groups_that_count_for_themselves_continue_bit_for_bit(name: str) -> None:
    def grouped(parameters: list[torch.nn.Parameter]) -> Any:
        return [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}]

    straight = make_parameters(name)
    optimizer = build(name, grouped(straight))
    take_steps(optimizer, straight, range(4))
    tensors, numbers = split_state(optimizer, NAMES, OPTIMIZERS[name].group_state)
    stopped = [torch.nn.Parameter(parameter.detach().clone()) for parameter in straight]
    take_steps(optimizer, straight, range(4, 8))

    resumed = build(name, grouped(stopped))
    join_state(resumed, NAMES, tensors, numbers)
    take_steps(resumed, stopped, range(4, 8))
    assert all(torch.equal(one, other) for one, other in zip(straight, stopped, strict=True))


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_state_costs_what_is_stated(name: str) -> None:
    # SOAP's statistics grow with the square of a side: as an adapter's matrix, with one side left as it is.
    shape = (16, 8192) if name == "soap" else (512, 256)
    parameter = torch.nn.Parameter(make_parameters(name)[0].detach().new_ones(shape))
    optimizer = build(name, [parameter])
    take_steps(optimizer, [parameter], range(1))
    tensors, _ = split_state(optimizer, ["a"])
    # Tables that are the same for every parameter ("qmap") are shared in use.
    used = sum(t.numel() * t.element_size() for key, t in tensors.items() if "qmap" not in key)
    assert used / parameter.numel() == pytest.approx(OPTIMIZERS[name].state_bytes, rel=0.01, abs=0.06)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_settings_are_arguments_of_the_class(name: str) -> None:
    signature = inspect.signature(load(name).__init__)
    assert set(OPTIMIZERS[name].settings) <= set(signature.parameters)


def test_options_and_free_settings_reach_the_optimizer() -> None:
    section = OptimizerSection(
        optimizer="optimi-lion",
        optimizer_config="betas=0.8,0.9, weight_decay=0.3,kahan_sum=false",
        optimizer_beta2=0.95,
    )
    assert optimizer_arguments(section) == {
        "betas": (0.8, 0.95), "weight_decay": 0.3, "kahan_sum": False, "decouple_lr": False
    }  # fmt: skip


def test_wrong_settings_are_told_all_at_once() -> None:
    section = OptimizerSection(
        optimizer="torch-sgd", optimizer_config="momentun=0.9,nesterov=perhaps", optimizer_beta1=0.5
    )
    with pytest.raises(UserError) as caught:
        optimizer_arguments(section)
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 3
    assert "Did you mean 'momentum'?" in told[0]
    assert "nesterov = 'perhaps'" in told[1]
    assert "optimizer_beta1 has no effect with optimizer torch-sgd" in told[2]


def test_without_a_compiler_torchao_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "no C++ compiler" in missing_compiler("cpu")
    parameters = make_parameters("ao-adamw8bit")
    before = parameters[0].detach().clone()
    optimizer = load("ao-adamw8bit")(parameters, lr=1e-2, compiled=True, seed=3)
    take_steps(optimizer, parameters, range(2))
    assert not torch.equal(before, parameters[0])


@pytest.mark.slow
def test_torchao_compiles_and_continues_bit_for_bit() -> None:
    if lacking := missing_compiler("cpu"):
        pytest.skip(lacking)

    def begin(values: list[Any]) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        parameters = [torch.nn.Parameter(value.detach().clone()) for value in values]
        return parameters, load("ao-adamw8bit")(parameters, lr=1e-2, seed=3)

    straight, optimizer = begin(make_parameters("ao-adamw8bit")[:1])
    take_steps(optimizer, straight, range(3))
    tensors, numbers = split_state(optimizer, NAMES[:1])
    resumed, again = begin(straight)
    join_state(again, NAMES[:1], tensors, numbers)
    take_steps(optimizer, straight, range(3, 6))
    take_steps(again, resumed, range(3, 6))
    assert torch.equal(straight[0], resumed[0])
