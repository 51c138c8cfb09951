"""The loop: settings that must not change the trajectory, stopping, numbers that are none."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simpletuner.core.errors import ExitCode, UserError
from simpletuner.events.types import StepFinished
from simpletuner.training.checkpoint import save_checkpoint
from simpletuner.training.fit import fit


def run_to_end(run: Any, stop: Callable[[], bool] = lambda: False) -> list[StepFinished]:
    return list(fit(run.state, run.objective, stop=stop))


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_trains_and_tells_every_step(small_run: Callable[..., Any]) -> None:
    run = small_run(total_steps=6, batch_size=2, accumulation=2)
    before = run.adapter()
    events = run_to_end(run)
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.epoch for event in events] == [1, 1, 2, 2, 3, 3]
    assert all(event.samples == 4 and event.tokens == 4 * 12 for event in events)
    assert all(math.isfinite(event.loss) and event.gradient_norm > 0 and event.seconds > 0 for event in events)
    assert events[0].learning_rate == 0.0
    assert events[3].learning_rate == 1e-2
    assert any(name.startswith("loss/sigma_") for name in events[0].terms)
    assert run.state.step == 6
    assert largest_difference(before, run.adapter()) > 1e-3


@pytest.mark.parametrize("optimizer", ["torch-adamw", "adamw_bf16"])
def test_two_runs_of_one_seed_are_bit_equal(small_run: Callable[..., Any], optimizer: str) -> None:
    one, other, third = (small_run(optimizer=optimizer, dropout=0.2, seed=seed) for seed in (7, 7, 8))
    losses = [[event.loss for event in run_to_end(run)] for run in (one, other, third)]
    assert losses[0] == losses[1] != losses[2]
    assert largest_difference(one.adapter(), other.adapter()) == 0.0
    assert largest_difference(one.adapter(), third.adapter()) > 0.0


def test_two_batches_of_two_train_like_one_of_four(small_run: Callable[..., Any]) -> None:
    whole, split = small_run(batch_size=4), small_run(batch_size=2, accumulation=2)
    one, other = run_to_end(whole), run_to_end(split)
    assert [e.loss for e in one] == pytest.approx([e.loss for e in other], abs=1e-6)
    assert [e.gradient_norm for e in one] == pytest.approx([e.gradient_norm for e in other], rel=1e-5)
    assert largest_difference(whole.adapter(), split.adapter()) < 1e-5


def test_smaller_last_batch_is_weighted_by_its_samples(small_run: Callable[..., Any]) -> None:
    # 5 samples: batches of 3 and 2 in one step must train like one batch of 5.
    whole = small_run(samples=5, batch_size=5, total_steps=4)
    split = small_run(samples=5, batch_size=3, accumulation=2, total_steps=4)
    one, other = run_to_end(whole), run_to_end(split)
    assert [e.loss for e in one] == pytest.approx([e.loss for e in other], abs=1e-6)
    assert largest_difference(whole.adapter(), split.adapter()) < 1e-5


def test_gradient_checkpointing_changes_nothing(small_run: Callable[..., Any]) -> None:
    plain, saving = small_run(dropout=0.2), small_run(dropout=0.2, checkpointing=True)
    one, other = run_to_end(plain), run_to_end(saving)
    assert [e.loss for e in one] == pytest.approx([e.loss for e in other], abs=1e-6)
    assert largest_difference(plain.adapter(), saving.adapter()) < 1e-5


def test_prefetching_changes_nothing(small_run: Callable[..., Any]) -> None:
    plain, ahead = small_run(), small_run(prefetch=2)
    assert [e.loss for e in run_to_end(plain)] == [e.loss for e in run_to_end(ahead)]
    ahead.stream.close()


def test_other_draws_in_between_change_nothing(small_run: Callable[..., Any]) -> None:
    quiet, disturbed = small_run(dropout=0.2), small_run(dropout=0.2)
    expected = [event.loss for event in run_to_end(quiet)]
    seen = []
    for event in fit(disturbed.state, disturbed.objective, stop=lambda: False):
        seen.append(event.loss)
        torch.manual_seed(0)  # what a validation in between might do
        torch.randn(100)
        disturbed.state.trainable.transformer.eval()
    assert seen == expected


def test_stops_between_steps(small_run: Callable[..., Any]) -> None:
    run = small_run()
    asked = iter([False, False, False, True])
    assert [event.step for event in run_to_end(run, lambda: next(asked))] == [1, 2, 3]
    assert run.state.step == 3


def test_a_finished_run_takes_no_step(small_run: Callable[..., Any]) -> None:
    run = small_run(total_steps=2)
    run_to_end(run)
    before = run.adapter()
    assert run_to_end(run) == []
    assert largest_difference(before, run.adapter()) == 0.0


def test_frozen_weights_stay_and_only_the_adapter_trains(small_run: Callable[..., Any]) -> None:
    run = small_run(total_steps=3)
    trained = {id(parameter) for parameter in run.state.trainable.parameters.values()}
    frozen = [p for p in run.state.trainable.transformer.parameters() if id(p) not in trained]
    before = [p.detach().clone() for p in frozen]
    run_to_end(run)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    assert all(p.grad is None for p in frozen)
    assert run.state.trainable.trained_count == sum(t.numel() for t in run.adapter().values())


@pytest.mark.parametrize("number", [0, 9, 39])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_update(
    small_run: Callable[..., Any], poisoned: Callable[..., Any], number: int, poison: float
) -> None:
    run = small_run(batch_size=1, accumulation=2)
    spoilt = poisoned(run.objective, number, lambda value: value * poison)
    kept = run.adapter()
    with pytest.raises(UserError) as error:
        for _ in fit(run.state, spoilt, stop=lambda: False):
            kept = run.adapter()
    assert error.value.exit_code == ExitCode.NUMERICS
    assert f"step {number // 2 + 1}:" in str(error.value)
    assert error.value.problems[0].what.count(".mp4") == 1  # only the sample that is to blame
    assert largest_difference(kept, run.adapter()) == 0.0
    assert run.state.step == number // 2
    assert all(parameter.grad is None for parameter in run.state.trainable.parameters.values())


def test_a_broken_gradient_of_a_finite_loss_stops_too(small_run: Callable[..., Any]) -> None:
    run = small_run(batch_size=2)
    first = next(iter(run.state.trainable.parameters.values()))
    first.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match="gradient norm is nan") as error:
        run_to_end(run)
    assert error.value.problems[0].what.count(".mp4") == 2
    assert run.state.broken


def test_a_parameter_without_gradient_is_an_error(small_run: Callable[..., Any]) -> None:
    run = small_run()
    next(iter(run.state.trainable.parameters.values())).requires_grad_(False)
    with pytest.raises(RuntimeError, match="got no gradient at step 1"):
        run_to_end(run)


def test_late_numbers_are_read_one_step_later_and_in_order(small_run: Callable[..., Any], late: list[Any]) -> None:
    prompt, run = small_run(total_steps=6), small_run(total_steps=6)
    expected = [event.loss for event in run_to_end(prompt)]
    seen = []
    for event in fit(run.state, run.objective, stop=lambda: False, settles=lambda step: step == 3):
        seen.append((event.step, run.state.step))
        assert event.loss == expected[event.step - 1]
    # After step 3 the state is the one of its event; the last step is read although none follows.
    assert seen == [(1, 2), (2, 3), (3, 3), (4, 5), (5, 6), (6, 6)]
    assert all(arrival.waited for arrival in late)


def test_all_steps_settle_unless_told_otherwise(small_run: Callable[..., Any], late: list[Any]) -> None:
    run = small_run(total_steps=4)
    assert [(e.step, run.state.step) for e in fit(run.state, run.objective, stop=lambda: False)] == [
        (1, 1), (2, 2), (3, 3), (4, 4),
    ]  # fmt: skip


def test_late_broken_numbers_mark_the_state(
    small_run: Callable[..., Any], late: list[Any], poisoned: Callable[..., Any], tmp_path: Path
) -> None:
    run = small_run()
    spoilt = poisoned(run.objective, 2, lambda value: value * math.nan)
    with pytest.raises(UserError, match="step 3:"):
        for _ in fit(run.state, spoilt, stop=lambda: False, settles=lambda step: False):
            pass
    assert run.state.broken
    with pytest.raises(UserError, match="is not saved"):
        save_checkpoint(run.state, tmp_path, facts=run.facts)
