"""The average of the trained weights: followed, worn and taken off again, saved and continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.average import AverageSection
from simpletuner.maths.ema import decay_at
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
