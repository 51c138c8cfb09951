"""The average of the trained weights: followed, worn and taken off again, saved and continued."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.average import AverageSection
from simpletuner.maths.ema import average_into, decay_at
from simpletuner.training import average as averages
from simpletuner.training.checkpoint import restore, save_checkpoint
from simpletuner.training.fit import fit
from simpletuner.training.snapshot import AVERAGE_FOLDER, AVERAGE_NAME, WEIGHTS_NAME

EMA = AverageSection(use_ema=True, ema_decay=0.9, ema_update_interval=2)


def test_follows_the_weights_every_second_step(small_run: Callable[..., Any]) -> None:
    run = small_run(average=EMA, total_steps=7)
    expected = {name: tensor.float() for name, tensor in run.adapter().items()}
    updates = 0
    for event in fit(run.state, run.objective, stop=lambda: False):
        if event.step % 2 == 0:
            memory = decay_at(updates, 0.9)
            expected = {n: memory * expected[n] + (1 - memory) * t.float() for n, t in run.adapter().items()}
            updates += 1
    found = run.state.average.tensors()
    assert run.state.average.updates == updates == 3
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
    assert any(not torch.equal(found[name], tensor) for name, tensor in run.adapter().items())


def weights_after_updates(run: Any, interval: int) -> list[dict[str, torch.Tensor]]:
    """The trained weights in float64: at the start, and after every step with an update."""
    found = [{name: tensor.double() for name, tensor in run.adapter().items()}]
    for event in fit(run.state, run.objective, stop=lambda: False):
        if event.step % interval == 0:
            found.append({name: tensor.double() for name, tensor in run.adapter().items()})
    return found


@pytest.mark.parametrize("optimizer", ["torch-adamw", "adamw_bf16"])
@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_ten_updates_over_accumulated_steps_are_the_closed_form(
    small_run: Callable[..., Any], optimizer: str, warmup_steps: int
) -> None:
    settings = AverageSection(use_ema=True, ema_decay=0.9, ema_update_interval=2, ema_warmup_steps=warmup_steps)
    run = small_run(average=settings, optimizer=optimizer, accumulation=4, total_steps=20)
    path = weights_after_updates(run, 2)
    # Update n keeps d_n of what was there: min(0.9, n / (9 + n)) from the second on (n = 1), or nothing for the
    # first three, which is every update up to step 5 and the one that reaches it.
    decays = [0.0, *(min(0.9, n / (9 + n)) for n in range(1, 10))] if not warmup_steps else [0.0] * 3 + [0.9] * 7
    # a_N = sum over n of (1 - d_n) d_(n+1) ... d_N w_n
    shares = [(1 - decay) * math.prod(decays[n + 1 :]) for n, decay in enumerate(decays)]
    assert sum(shares) == pytest.approx(1.0)
    assert run.state.average.updates == 10
    for name, average in run.state.average.tensors().items():
        expected = sum(share * weights[name] for share, weights in zip(shares, path[1:], strict=True))
        assert (average.double() - expected).abs().max() < 1e-6, name


def test_two_thousand_updates_reach_a_constant(small_run: Callable[..., Any]) -> None:
    # In bfloat16 an average at 1 would never move towards 1.5 with a memory of 0.995.
    average = small_run(average=AverageSection(use_ema=True), optimizer="adamw_bf16").state.average
    for parameter in average._parameters.values():
        parameter.data.fill_(1.0)
    average.update(1)
    for parameter in average._parameters.values():
        parameter.data.fill_(1.5)
    for step in range(2, 2002):
        average.update(step)
    assert all((tensor - 1.5).abs().max() < 0.005 for tensor in average.tensors().values())


def test_averages_elsewhere_are_moved_beside_training_and_come_out_the_same(
    small_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = (small_run(average=EMA, total_steps=6) for _ in range(2))
    elsewhere.state.average._travels = True  # as on an accelerator with ema_device cpu
    go, is_first = threading.Event(), iter([True])

    def wait_at_first(*arguments: Any) -> None:
        assert not next(is_first, False) or go.wait(20)
        average_into(*arguments)

    monkeypatch.setattr(averages, "average_into", wait_at_first)
    events = fit(elsewhere.state, elsewhere.objective, stop=lambda: False)
    steps = [next(events).step for _ in range(3)]  # the update of step 2 is under way
    assert steps == [1, 2, 3]
    assert not elsewhere.state.average._under_way.done()
    go.set()
    list(events)
    list(fit(here.state, here.objective, stop=lambda: False))
    for name, tensor in here.state.average.tensors().items():
        assert torch.equal(tensor, elsewhere.state.average.tensors()[name])


def test_weights_come_back_bit_for_bit_even_after_an_exception(small_run: Callable[..., Any]) -> None:
    run = small_run(average=EMA, total_steps=4, optimizer="adamw_bf16")
    list(fit(run.state, run.objective, stop=lambda: False))
    before = run.adapter()
    with pytest.raises(RuntimeError, match="while worn"), run.state.wearing("ema"):
        worn = run.adapter()
        raise RuntimeError("while worn")
    assert any(not torch.equal(worn[name], before[name]) for name in before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.adapter().items())


@pytest.mark.parametrize("device", ["cpu", "accelerator"])
def test_resumed_average_equals_the_straight_one(small_run: Callable[..., Any], tmp_path: Path, device: str) -> None:
    settings = EMA.model_copy(update={"ema_device": device})
    straight, first, second = (small_run(average=settings, total_steps=9) for _ in range(3))
    list(fit(straight.state, straight.objective, stop=lambda: False))
    list(fit(first.state, first.objective, stop=lambda: first.state.step == 5))
    saved = save_checkpoint(first.state, tmp_path, facts=first.facts)
    assert restore(second.state, saved, second.facts) == ()
    list(fit(second.state, second.objective, stop=lambda: False))
    for name, tensor in straight.state.average.tensors().items():
        assert torch.equal(tensor, second.state.average.tensors()[name])


def test_a_checkpoint_carries_the_average_twice(small_run: Callable[..., Any], tmp_path: Path) -> None:
    run = small_run(average=EMA, total_steps=4)
    list(fit(run.state, run.objective, stop=lambda: False))
    saved = save_checkpoint(run.state, tmp_path, facts=run.facts)
    exact, exported = load_file(saved / AVERAGE_NAME), load_file(saved / AVERAGE_FOLDER / WEIGHTS_NAME)
    assert {f"transformer.{name}" for name in exact} == set(exported)
    for name, tensor in exact.items():
        assert torch.allclose(tensor, exported[f"transformer.{name}"].float())


def test_switching_it_on_or_off_is_told(small_run: Callable[..., Any], tmp_path: Path) -> None:
    plain, averaged = small_run(total_steps=2), small_run(average=EMA, total_steps=2)
    for run, folder in ((plain, tmp_path / "plain"), (averaged, tmp_path / "averaged")):
        list(fit(run.state, run.objective, stop=lambda: False))
        save_checkpoint(run.state, folder, facts=run.facts)
    late = small_run(average=EMA, total_steps=2)
    (told,) = restore(late.state, tmp_path / "plain" / "checkpoint-2", late.facts)
    assert "holds no running average" in told
    for name, tensor in late.state.average.tensors().items():
        assert torch.equal(tensor, plain.adapter()[name].float())
    without = small_run(total_steps=2)
    (told,) = restore(without.state, tmp_path / "averaged" / "checkpoint-2", without.facts)
    assert "use_ema was on and is off now" in told


def test_a_lycoris_run_continues_bit_for_bit(small_run: Callable[..., Any], tmp_path: Path) -> None:
    file = LycorisFile(algo="lokr", multiplier=1.0, linear_alpha=1, full_matrix=True, factor=4)
    straight, first, second = (small_run(lycoris=file, average=EMA, total_steps=6) for _ in range(3))
    list(fit(straight.state, straight.objective, stop=lambda: False))
    list(fit(first.state, first.objective, stop=lambda: first.state.step == 3))
    saved = save_checkpoint(first.state, tmp_path, facts=first.facts)
    assert restore(second.state, saved, second.facts) == ()
    list(fit(second.state, second.objective, stop=lambda: False))
    for name, tensor in straight.adapter().items():
        assert torch.equal(tensor, second.adapter()[name])
