"""Gradients of bfloat16 parameters add up in float32: nothing of a micro-batch is lost in the sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpletuner.training.fit import fit
from simpletuner.training.gradient_sums import GradientSums
from simpletuner.training.optim.adamw_bf16 import AdamWBF16
from simpletuner.training.readout import StepNumbers
from simpletuner.training.step import run_micro_step


def backward(parameter: nn.Parameter, gradients: Tensor) -> None:
    """One backward pass per row, each with that row as the gradient."""
    for row in gradients:
        (parameter * row).sum().backward()


def test_many_small_gradients_are_not_lost_beside_a_large_one() -> None:
    # In bfloat16 1 + 1/512 is 1 again: of 256 such additions none would arrive.
    gradients = torch.full((257, 4), 1 / 512, dtype=torch.bfloat16)
    gradients[0] = 1.0
    plain, summed = (nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(2))
    sums = GradientSums([summed])
    for parameter in (plain, summed):
        backward(parameter, gradients)
    assert plain.grad is not None
    assert torch.equal(plain.grad, torch.ones(4, dtype=torch.bfloat16))
    assert summed.grad is None
    assert torch.equal(sums.of(summed), torch.full((4,), 1.5))  # type: ignore[arg-type]


def test_float32_parameters_keep_their_own_gradients() -> None:
    parameter = nn.Parameter(torch.ones(4))
    sums = GradientSums([parameter])
    backward(parameter, torch.ones(2, 4))
    assert sums.of(parameter) is parameter.grad
    assert torch.equal(sums.of(parameter), torch.full((4,), 2.0))  # type: ignore[arg-type]


def test_adamw_takes_the_sums_as_they_are_and_others_rounded_once() -> None:
    gradients = torch.full((257, 4), 1 / 512, dtype=torch.bfloat16)
    gradients[0] = 1.0
    own, other = (nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(2))
    adamw, descent = AdamWBF16([own], lr=0.0), torch.optim.SGD([other], lr=1.0)
    for parameter, optimizer in ((own, adamw), (other, descent)):
        sums = GradientSums([parameter])
        backward(parameter, gradients)
        sums.hand_over(optimizer)
        optimizer.step()
        assert sums.of(parameter) is (None if parameter is own else other.grad)
    assert torch.equal(adamw.state[own]["exp_avg"], torch.full((4,), 0.1).mul(1.5))
    assert adamw.gradients == {}
    assert torch.equal(other.data, torch.full((4,), -0.5, dtype=torch.bfloat16))


def sums_of_a_step(run: Any) -> dict[str, Tensor]:
    """The gradient that the first step of a run arrives at."""
    numbers, ends_step = StepNumbers(1, 0.0), False
    while not ends_step:
        batch = next(run.state.batches)
        run_micro_step(run.state, run.objective, batch, numbers)
        ends_step = batch.ends_step
    found = {}
    for name, parameter in run.state.trainable.parameters.items():
        gradient = parameter.grad if run.state.sums is None else run.state.sums.of(parameter)
        assert gradient is not None
        found[name] = gradient.float()
    return found


def test_eight_batches_of_one_train_adamw_bf16_like_one_of_eight(small_run: Callable[..., Any]) -> None:
    whole, split = (small_run(optimizer="adamw_bf16", batch_size=size, accumulation=8 // size) for size in (8, 1))
    one, other = sums_of_a_step(whole), sums_of_a_step(split)
    for name, gradient in one.items():
        # Each of the nine was rounded once, to 2^-9 of its size; their sizes add up to at most 8 x the mean's share.
        scale = gradient.abs().max()
        assert (gradient - other[name]).abs().max() <= scale * 9 * 2**-9, name
        assert (gradient - other[name]).mean().abs() <= scale * 2**-9, name


@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 2), (1, 4)])
def test_two_batches_of_two_train_adamw_bf16_like_one_of_four(
    small_run: Callable[..., Any], batch_size: int, accumulation: int
) -> None:
    whole = small_run(optimizer="adamw_bf16", batch_size=4)
    split = small_run(optimizer="adamw_bf16", batch_size=batch_size, accumulation=accumulation)
    start = whole.adapter()
    rows = [list(fit(run.state, run.objective, stop=lambda: False)) for run in (whole, split)]
    # Losses differ by what single roundings of weights (2^-9 of a weight) do; they must not drift.
    differences = torch.tensor([one.loss - other.loss for one, other in zip(*rows, strict=True)])
    assert differences.abs().max() < 2e-3
    assert differences.mean().abs() < 5e-4
    moved = torch.cat([(whole.adapter()[name] - tensor).float().flatten() for name, tensor in start.items()])
    apart = torch.cat([(whole.adapter()[name] - t).float().flatten() for name, t in split.adapter().items()])
    assert apart.mean().abs() < 0.005 * moved.abs().mean()
    assert apart.abs().mean() < 0.1 * moved.abs().mean()
