"""A run may be paused anywhere: between any two steps, and between any two micro-batches of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simpletuner.config.sections.average import AverageSection
from simpletuner.training.checkpoint import restore, save_checkpoint
from simpletuner.training.fit import fit
from simpletuner.training.optimizer_state import split_state

EMA = AverageSection(use_ema=True, ema_decay=0.9, ema_update_interval=2)


def everything(run: Any) -> dict[str, torch.Tensor]:
    moments, _ = split_state(run.state.optimizer, list(run.state.trainable.parameters))
    return {**run.adapter(), **moments, **{f"ema.{n}": t for n, t in run.state.average.tensors().items()}}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("optimizer", ["adamw_bf16", pytest.param("torch-adamw", marks=pytest.mark.slow)])
def test_resuming_at_every_one_of_twenty_steps_is_bit_equal(
    small_run: Callable[..., Any], tmp_path: Path, optimizer: str
) -> None:
    settings = {"optimizer": optimizer, "average": EMA, "dropout": 0.2, "samples": 5, "accumulation": 2}
    straight, chopped = (small_run(**settings) for _ in range(2))
    losses = [event.loss for event in fit(straight.state, straight.objective, stop=lambda: False)]
    # One step, a checkpoint, another process in all but name: twenty times.
    seen: list[float] = []
    for _ in range(20):
        seen.append(next(fit(chopped.state, chopped.objective, stop=lambda: False)).loss)
        saved = save_checkpoint(chopped.state, tmp_path, facts=chopped.facts)
        chopped = small_run(**settings)
        assert restore(chopped.state, saved, chopped.facts) == ()
    assert seen == losses
    assert same(everything(straight), everything(chopped))


class AfterMicroSteps:
    """Asks to stop once so many micro-batches have been through the model."""

    def __init__(self, objective: Any, count: int) -> None:
        self._objective, self._left = objective, count

    def __call__(self, *arguments: Any) -> Any:
        self._left -= 1
        return self._objective(*arguments)

    def stop(self) -> bool:
        return self._left <= 0


@pytest.mark.parametrize(
    ("optimizer", "prefetch"), [("adamw_bf16", 2), pytest.param("torch-adamw", 0, marks=pytest.mark.slow)]
)
def test_a_pause_at_every_micro_step_is_exact(
    small_run: Callable[..., Any], tmp_path: Path, optimizer: str, prefetch: int
) -> None:
    settings = {
        "optimizer": optimizer, "average": EMA, "accumulation": 4, "samples": 10, "total_steps": 4, "dropout": 0.2,
        "prefetch": prefetch,
    }  # fmt: skip
    straight = small_run(**settings)
    losses = [event.loss for event in fit(straight.state, straight.objective, stop=lambda: False)]
    for count in (1, 3, 4, 6, 9):
        run, again = small_run(**settings), small_run(**settings)
        counted = AfterMicroSteps(run.objective, count)
        seen = [event.loss for event in fit(run.state, counted, stop=counted.stop)]
        # An epoch has 10 draws: steps of 4, 4 and 2. What of a step was done is given up.
        assert run.state.step == sum(count >= ends for ends in (4, 8, 10)), count
        assert all(parameter.grad is None for parameter in run.state.trainable.parameters.values())
        saved = save_checkpoint(run.state, tmp_path / str(count), facts=run.facts)
        restore(again.state, saved, again.facts)
        seen += [event.loss for event in fit(again.state, again.objective, stop=lambda: False)]
        assert seen == losses, count
        assert same(everything(straight), everything(again)), count
        # The paused run itself may go on as well.
        list(fit(run.state, run.objective, stop=lambda: False))
        assert same(everything(straight), everything(run)), count
        for stream in (run.stream, again.stream):
            stream.close()
    straight.stream.close()


@pytest.mark.parametrize("prefetch", [1, 4])
def test_how_far_ahead_batches_are_prepared_changes_nothing(small_run: Callable[..., Any], prefetch: int) -> None:
    plain, ahead = (small_run(total_steps=12, samples=5, batch_size=2, prefetch=number) for number in (0, prefetch))
    losses = [[event.loss for event in fit(run.state, run.objective, stop=lambda: False)] for run in (plain, ahead)]
    assert losses[0] == losses[1]
    assert same(plain.adapter(), ahead.adapter())
    ahead.stream.close()
