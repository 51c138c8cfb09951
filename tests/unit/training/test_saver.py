"""Checkpoints written beside training: what is written is the moment of the snapshot, and no fault goes unnoticed."""

from __future__ import annotations

import errno
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.average import AverageSection
from simpletuner.core.errors import ExitCode, UserError
from simpletuner.training import saver as savers
from simpletuner.training.checkpoint import prune_checkpoints, restore, save_checkpoint
from simpletuner.training.fit import fit
from simpletuner.training.manifest import list_checkpoints
from simpletuner.training.saver import CheckpointSaver, Saved
from simpletuner.training.snapshot import Snapshot, take_snapshot, write_snapshot

EMA = AverageSection(use_ema=True, ema_decay=0.9, ema_update_interval=2)
LOKR = {"algo": "lokr", "linear_dim": 4, "linear_alpha": 2, "multiplier": 1.0}
GROUP = {"target_module": ["LTXAttention", "FeedForward"], "module_algo_map": {"FeedForward": {"algo": "full"}}}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "pissa": {"adapter": AdapterSection(lora_rank=4, lora_init_type="pissa", lora_alpha=3.0)},
    "comfyui dora": {"adapter": AdapterSection(lora_rank=4, lora_format="comfyui", use_dora=True, lora_alpha=3.0)},
    "lokr": {"lycoris": LycorisFile(**LOKR)},
    "glora": {"lycoris": LycorisFile(**{**LOKR, "algo": "glora"})},
    "lokr and full": {"lycoris": LycorisFile(**LOKR, apply_preset=GROUP)},
    "all weights": {"full": True},
    "adamw_bf16": {"optimizer": "adamw_bf16"},
}


def train(run: Any, steps: int) -> list[float]:
    until = run.state.step + steps
    return [event.loss for event in fit(run.state, run.objective, stop=lambda: run.state.step == until)]


def files_of(folder: Path) -> dict[str, bytes]:
    """What every file of a checkpoint holds; the texts of safetensors files, which name the hour, are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            for name, tensor in load_file(path).items():
                found[f"{path.relative_to(folder)}/{name}"] = tensor.float().numpy().tobytes()
        elif path.is_file() and "manifest" not in path.name:
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_later_is_the_moment_of_the_snapshot(
    small_run: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    settings = METHODS[method]
    if "lycoris" in settings:
        settings = {**settings, "adapter": AdapterSection(lora_type="lycoris")}
    run, again = (small_run(average=EMA, total_steps=6, **settings) for _ in range(2))
    train(run, 3)
    at_once = save_checkpoint(run.state, tmp_path / "at once", facts=run.facts)
    snapshot = take_snapshot(run.state, run.facts)
    losses = train(run, 2)
    later = write_snapshot(snapshot, tmp_path / "later")
    assert files_of(later) == files_of(at_once)
    restore(again.state, later, again.facts)
    assert train(again, 2) == losses
    assert all(torch.equal(tensor, again.adapter()[name]) for name, tensor in run.adapter().items())


def hold(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[int]]:
    """Make every write wait for the event, and note the steps in the order they began."""
    go, begun = threading.Event(), []

    def slow(snapshot: Snapshot, folder: Path) -> Path:
        begun.append(snapshot.step)
        assert go.wait(20)
        return write_snapshot(snapshot, folder)

    monkeypatch.setattr(savers, "write_snapshot", slow)
    return go, begun


def test_training_goes_on_while_one_is_written_and_waits_for_it_before_the_next(
    small_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, run = small_run(total_steps=6), small_run(total_steps=6)
    expected = train(quiet, 6)
    go, begun = hold(monkeypatch)
    saved: list[Saved] = []
    saver = CheckpointSaver(tmp_path, saved.append)
    losses = train(run, 2)
    saver.save(lambda: take_snapshot(run.state, run.facts))
    losses += train(run, 2)
    saver.check()
    assert (begun, saved, list_checkpoints(tmp_path)) == ([2], [], [])
    threading.Timer(0.05, go.set).start()
    saver.save(lambda: take_snapshot(run.state, run.facts))
    assert [item.snapshot.step for item in saved] == [2]  # at most one is under way
    losses += train(run, 2)
    saver.finish()
    assert losses == expected
    assert [(item.snapshot.step, item.path.name) for item in saved] == [(2, "checkpoint-2"), (4, "checkpoint-4")]
    assert all(item.seconds >= item.stalled_seconds > 0 for item in saved)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, 4]


def test_a_full_disk_is_told_at_the_next_step_and_once(
    small_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(total_steps=6)
    train(run, 1)
    save_checkpoint(run.state, tmp_path, facts=run.facts)
    train(run, 1)

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    saver = CheckpointSaver(tmp_path, lambda saved: None)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        saver.save(lambda: take_snapshot(run.state, run.facts))
        deadline = time.monotonic() + 20
        with pytest.raises(UserError, match="no space left") as error:
            while time.monotonic() < deadline:
                saver.check()
                time.sleep(0.005)
    assert error.value.exit_code == ExitCode.DISK
    saver.finish()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("in_background", [True, False])
def test_numbers_that_are_none_are_found_before_anything_is_written(
    small_run: Callable[..., Any], tmp_path: Path, in_background: bool
) -> None:
    run = small_run(average=EMA, total_steps=4)
    train(run, 2)
    saver = CheckpointSaver(tmp_path, lambda saved: None, in_background=in_background)
    next(iter(run.state.average._averages.values())).fill_(math.nan)
    with pytest.raises(UserError, match="no finite numbers") as error:
        saver.save(lambda: take_snapshot(run.state, run.facts))
        saver.finish()
    assert error.value.exit_code == ExitCode.NUMERICS
    assert list(tmp_path.iterdir()) == []


def test_what_follows_a_checkpoint_may_fail_and_is_told(small_run: Callable[..., Any], tmp_path: Path) -> None:
    run = small_run(total_steps=4)

    def refuse(saved: Saved) -> None:
        raise UserError("no", "rule", "fix")

    saver = CheckpointSaver(tmp_path, refuse)
    saver.save(lambda: take_snapshot(run.state, run.facts))
    with pytest.raises(UserError, match=r"no\. rule"):
        saver.finish()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [0]


def test_safety_checkpoints_have_a_limit_of_their_own(small_run: Callable[..., Any], tmp_path: Path) -> None:
    run = small_run(total_steps=12)
    left = []
    for step in range(1, 11):
        train(run, 1)
        path = write_snapshot(take_snapshot(run.state, run.facts, is_rolling=step % 4 != 0), tmp_path)
        prune_checkpoints(tmp_path, 1, keep=path, rolling_limit=2)
        left.append([number for number, _ in list_checkpoints(tmp_path)])
    assert left == [[1], [1, 2], [2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6], [4, 6, 7], [6, 7, 8], [7, 8, 9], [8, 9, 10]]
