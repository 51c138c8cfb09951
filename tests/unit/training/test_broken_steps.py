"""Steps whose numbers are none: passed over without a trace in weights and moments, on the CPU and on a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from simpletuner.core.errors import UserError
from simpletuner.events.types import StepFinished, StepSkipped
from simpletuner.training.fit import fit_on
from simpletuner.training.optimizer_state import split_state

PLAIN = {"lr_scheduler": "constant", "lr_warmup_steps": 0}


def everything(run: Any) -> dict[str, torch.Tensor]:
    """Weights and moments; not the counts of steps."""
    moments, _ = split_state(run.state.optimizer, list(run.state.trainable.parameters))
    return {**run.adapter(), **{name: tensor for name, tensor in moments.items() if not name.startswith("step.")}}


def train(run: Any, objective: Any, *, settles: Callable[[int], bool] = lambda step: True) -> list[Any]:
    """Events, and what the run was like before and after each."""
    return list(fit_on(run.state, objective, stop=lambda: False, settles=settles))


@pytest.mark.parametrize("optimizer", ["torch-adamw", "adamw_bf16"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_step_leaves_weights_and_moments_as_they_were(
    small_run: Callable[..., Any], poisoned: Callable[..., Any], optimizer: str, poison: float
) -> None:
    run = small_run(optimizer=optimizer, batch_size=2, accumulation=2, total_steps=5, **PLAIN)
    spoilt = poisoned(run.objective, 9, lambda value: value * poison)  # of step 3 (draws 8 to 11)
    before, seen = everything(run), {}
    for event in fit_on(run.state, spoilt, stop=lambda: False):
        after = everything(run)
        seen[event.step] = (event, all(torch.equal(before[name], after[name]) for name in before if name in after))
        before = after
    assert [type(event) for event, _ in seen.values()] == [StepFinished] * 2 + [StepSkipped] + [StepFinished] * 2
    assert [kept for _, kept in seen.values()] == [False, False, True, False, False]
    skipped = seen[3][0]
    assert len(skipped.samples) == 1
    assert "not a finite number" in skipped.reason
    assert run.state.skipped_steps == [3]
    assert run.state.step == 5
    assert not run.state.broken


@pytest.mark.parametrize("optimizer", ["torch-adamw", "adamw_bf16", "torch-rmsprop"])
def test_a_device_passes_over_a_broken_step_without_asking_the_host(
    small_run: Callable[..., Any], poisoned: Callable[..., Any], late: list[Any], optimizer: str
) -> None:
    run = small_run(optimizer=optimizer, total_steps=6, **PLAIN)
    spoilt = poisoned(run.objective, 2, lambda value: value * math.nan)
    kept, before = {}, everything(run)
    for event in fit_on(run.state, spoilt, stop=lambda: False):  # every step settles
        after = everything(run)
        kept[event.step] = all(torch.equal(before[name], after[name]) for name in before if name in after)
        assert all(torch.isfinite(tensor).all() for tensor in after.values())
        before = after
    assert run.state.skipped_steps == [3]
    # RMSprop cannot leave its memory alone; its weights still do not move, because the gradient was zero.
    assert kept == {step: step == 3 and optimizer != "torch-rmsprop" for step in range(1, 7)}


def test_late_broken_steps_are_told_in_order_and_do_no_harm(
    small_run: Callable[..., Any], poisoned: Callable[..., Any], late: list[Any]
) -> None:
    prompt, behind = small_run(total_steps=6), small_run(total_steps=6)
    spoilt = [poisoned(run.objective, {2, 3}, lambda value: value * math.nan) for run in (prompt, behind)]
    told = train(prompt, spoilt[0]), train(behind, spoilt[1], settles=lambda step: False)
    assert [(type(event), event.step) for event in told[0]] == [(type(event), event.step) for event in told[1]]
    assert [event.step for event in told[1]] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(tensor, everything(behind)[name]) for name, tensor in everything(prompt).items())
    assert all(arrival.waited for arrival in late)


def test_a_broken_gradient_of_a_finite_loss_is_passed_over_too(small_run: Callable[..., Any]) -> None:
    run = small_run(batch_size=2, total_steps=3)
    first = next(iter(run.state.trainable.parameters.values()))
    first.register_hook(lambda gradient: gradient * math.inf)
    before = run.adapter()
    events = train(run, run.objective)
    assert [type(event) for event in events] == [StepSkipped] * 3
    assert all(len(event.samples) == 2 and "gradient norm is nan" in event.reason for event in events)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.adapter().items())


def test_many_samples_are_counted_instead_of_named(small_run: Callable[..., Any], poisoned: Callable[..., Any]) -> None:
    from simpletuner.training.fit import fit

    run = small_run(samples=12, batch_size=12, total_steps=2)
    spoilt = poisoned(run.objective, range(12), lambda value: value * math.nan)
    with pytest.raises(UserError, match="and 4 more"):
        list(fit(run.state, spoilt, stop=lambda: False))
