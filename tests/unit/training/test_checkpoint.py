"""Checkpoints: exact continuation, damage of every kind, choice of the right one, pruning."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simpletuner.core import files
from simpletuner.core.errors import ExitCode, UserError
from simpletuner.training import checkpoint as checkpoints
from simpletuner.training.checkpoint import (
    check_facts,
    find_checkpoint,
    prune_checkpoints,
    restore,
    save_checkpoint,
)
from simpletuner.training.fit import fit
from simpletuner.training.manifest import MANIFEST_NAME, list_checkpoints

FILES = (checkpoints.WEIGHTS_NAME, checkpoints.OPTIMIZER_NAME, checkpoints.STATE_NAME, MANIFEST_NAME)


def train(run: Any, until: int = 10**9) -> list[tuple[int, float, float, float]]:
    """(step, loss, gradient norm, learning rate) of each step, up to and including `until`."""
    rows = []
    for event in fit(run.state, run.objective, stop=lambda: run.state.step >= until):
        rows.append((event.step, event.loss, event.gradient_norm, event.learning_rate))
    return rows


def moments(run: Any) -> dict[str, Any]:
    state = run.state.optimizer.state_dict()["state"]
    return {f"{index}.{part}": value for index, parts in state.items() for part, value in parts.items()}


def assert_equal_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_run: Callable[..., Any]) -> Path:
    """Checkpoints 2, 9 and 10 of one run; copied by tests that damage them."""
    run = small_run()
    folder = tmp_path_factory.mktemp("made")
    for step in (2, 9, 10):
        train(run, step)
        save_checkpoint(run.state, folder, facts=run.facts)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.mark.parametrize("optimizer", ["torch-adamw", "adamw_bf16"])
@pytest.mark.parametrize("settings", [{}, {"batch_size": 3, "accumulation": 2, "dropout": 0.3, "prefetch": 2}])
def test_resumed_run_equals_the_straight_one_bit_for_bit(
    small_run: Callable[..., Any], tmp_path: Path, optimizer: str, settings: dict[str, Any]
) -> None:
    straight, first, second = (small_run(optimizer=optimizer, **settings) for _ in range(3))
    expected = train(straight)
    rows = train(first, 10)
    saved = save_checkpoint(first.state, tmp_path, facts=first.facts)
    assert saved == tmp_path / "checkpoint-10"
    assert restore(second.state, saved, second.facts) == ()
    assert second.state.step == 10
    assert rows + train(second) == expected
    assert_equal_bits(straight.adapter(), second.adapter())
    assert_equal_bits(moments(straight), moments(second))
    for run in (straight, first, second):
        run.stream.close()


def test_saving_does_not_change_the_run(small_run: Callable[..., Any], tmp_path: Path) -> None:
    quiet, saving = small_run(total_steps=6), small_run(total_steps=6)
    expected = train(quiet)
    rows = []
    for event in fit(saving.state, saving.objective, stop=lambda: False):
        rows.append(event.loss)
        save_checkpoint(saving.state, tmp_path, facts=saving.facts)
    assert rows == [row[1] for row in expected]
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_holds_the_adapter_as_trained_and_no_pickle(small_run: Callable[..., Any], tmp_path: Path) -> None:
    run = small_run(optimizer="adamw_bf16", total_steps=2)
    train(run)
    saved = save_checkpoint(run.state, tmp_path, facts=run.facts)
    assert {path.name for path in saved.iterdir()} == set(FILES)
    stored = load_file(saved / checkpoints.WEIGHTS_NAME)
    assert_equal_bits({f"transformer.{name}": tensor for name, tensor in run.adapter().items()}, stored)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    optimizer = load_file(saved / checkpoints.OPTIMIZER_NAME)
    assert {tensor.dtype for tensor in optimizer.values()} == {torch.float32}


# Choosing --------------------------------------------------------------------------------------


def test_latest_is_the_highest_number(folder: Path) -> None:
    for step, seconds in ((10, 100), (9, 200), (2, 300)):  # file times are reversed and do not matter
        os.utime(folder / f"checkpoint-{step}", (seconds, seconds))
    assert find_checkpoint(folder, "latest") == folder / "checkpoint-10"


def test_names_are_matched_exactly_and_sorted_as_numbers(tmp_path: Path) -> None:
    for name in ("checkpoint-900", "checkpoint-1000"):
        (tmp_path / name).mkdir()
    for name in (
        "checkpoint-1200-tmp",
        "checkpoint-x",
        "checkpoint-007",
        "checkpoint-",
        "checkpoint-3 ",
        "-checkpoint-4",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5000").write_text("a file")
    assert [step for step, _ in list_checkpoints(tmp_path)] == [900, 1000]


@pytest.mark.parametrize("request_", [None, "", "none", " None "])
def test_no_request_is_a_fresh_start(folder: Path, request_: str | None) -> None:
    assert find_checkpoint(folder, request_) is None


def test_nothing_there_is_a_fresh_start(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "latest") is None
    assert find_checkpoint(tmp_path / "absent", "latest") is None


def test_a_named_checkpoint_is_taken(folder: Path) -> None:
    assert find_checkpoint(folder, "checkpoint-2") == folder / "checkpoint-2"
    assert find_checkpoint(folder.parent / "elsewhere", str(folder / "checkpoint-9")) == folder / "checkpoint-9"


def test_a_missing_named_checkpoint_is_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match=r"'checkpoint-3' does not exist.*checkpoint-2, checkpoint-9, checkpoint-10"):
        find_checkpoint(folder, "checkpoint-3")


def test_a_broken_named_checkpoint_is_an_error(folder: Path) -> None:
    (folder / "checkpoint-9" / checkpoints.STATE_NAME).unlink()
    with pytest.raises(UserError, match=r"training_state\.json is missing"):
        find_checkpoint(folder, "checkpoint-9")


# Damage ----------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped bit": flip,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "missing": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before(
    folder: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](folder / "checkpoint-10" / name)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(folder, "latest") == folder / "checkpoint-9"
    assert "checkpoint-10" in caplog.text
    with pytest.raises(UserError, match="cannot be used"):
        find_checkpoint(folder, "checkpoint-10")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"step": 11},
        {"files": {}},
        {"files": []},
        {"files": {"../secret": {"size": 0, "sha256": ""}}},
        {"files": {"/etc/hostname": {"size": 0, "sha256": ""}}},
    ],
)
def test_a_manifest_that_claims_something_else_is_not_followed(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "checkpoint-10" / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    if isinstance(change.get("files"), dict) and change["files"]:
        change = {"files": {**manifest["files"], **change["files"]}}
    path.write_text(json.dumps({**manifest, **change}))
    assert find_checkpoint(folder, "latest") == folder / "checkpoint-9"


def test_a_copy_under_another_number_is_not_taken(folder: Path) -> None:
    shutil.copytree(folder / "checkpoint-9", folder / "checkpoint-50")
    assert find_checkpoint(folder, "latest") == folder / "checkpoint-10"


def test_all_broken_is_an_error_and_not_a_fresh_start(folder: Path) -> None:
    for _, path in list_checkpoints(folder):
        flip(path / checkpoints.OPTIMIZER_NAME)
    with pytest.raises(UserError, match="none of the 3 checkpoints"):
        find_checkpoint(folder, "latest")


def test_files_that_are_not_listed_do_no_harm(folder: Path) -> None:
    (folder / "checkpoint-10" / ".DS_Store").write_bytes(b"finder")
    assert find_checkpoint(folder, "latest") == folder / "checkpoint-10"


# Continuing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 8}, "lora_rank 4; this run has 8"),
        ({"model": "other"}, "model tiny; this run has other"),
        ({"optimizer": "adamw_bf16"}, "optimizer torch-adamw; this run has adamw_bf16"),
        ({"seed": 8}, "seed 7; this run has 8"),
    ],
)
def test_another_run_is_refused_with_both_values(
    small_run: Callable[..., Any], made: Path, settings: dict[str, Any], said: str
) -> None:
    run = small_run(**settings)
    before = run.adapter()
    with pytest.raises(UserError, match=said):
        restore(run.state, made / "checkpoint-10", run.facts)
    assert_equal_bits(before, run.adapter())
    assert run.state.step == 0


def test_other_clips_are_refused(small_run: Callable[..., Any], made: Path) -> None:
    run = small_run(samples=9)
    with pytest.raises(UserError, match="data set"):
        restore(run.state, made / "checkpoint-10", run.facts)


@pytest.mark.parametrize("settings", [{"batch_size": 2}, {"accumulation": 4}])
def test_other_batches_go_on_where_the_order_allows_it(
    small_run: Callable[..., Any], made: Path, settings: dict[str, Any]
) -> None:
    run = small_run(**settings)
    told = restore(run.state, made / "checkpoint-10", run.facts)
    assert any(name in sentence for sentence in told for name in ("train_batch_size", "gradient_accumulation_steps"))
    assert run.state.step == 10


def test_what_does_not_fit_is_told_before_anything_is_loaded(made: Path) -> None:
    with pytest.raises(UserError) as error:
        check_facts(made / "checkpoint-10", {"lora_rank": 128, "model": "other", "unknown": 1})
    assert len(error.value.problems) == 2
    assert check_facts(made / "checkpoint-10", {"lora_rank": 4}) == ()


def test_a_changed_learning_rate_is_taken_and_told(small_run: Callable[..., Any], made: Path) -> None:
    run = small_run(learning_rate=5e-3, total_steps=30, lr_end=0.0)
    told = restore(run.state, made / "checkpoint-10", run.facts)
    assert {sentence.split()[0] for sentence in told} == {"learning_rate", "lr_end", "max_train_steps"}
    assert any("0.01" in sentence for sentence in told)
    assert "0.005" in told[0]
    (row,) = train(run, 11)
    assert row[3] == pytest.approx(5e-3 * (1 - 7 / 27))


def test_numbers_that_are_none_are_never_saved(small_run: Callable[..., Any], folder: Path) -> None:
    run = small_run()
    train(run, 3)
    next(iter(run.state.trainable.parameters.values())).data[0, 0] = math.nan
    with pytest.raises(UserError, match="lora_A") as error:
        save_checkpoint(run.state, folder, facts=run.facts)
    assert error.value.exit_code == ExitCode.NUMERICS
    assert [step for step, _ in list_checkpoints(folder)] == [2, 9, 10]


def test_broken_moments_and_broken_runs_are_never_saved(small_run: Callable[..., Any], tmp_path: Path) -> None:
    run = small_run()
    train(run, 2)
    run.state.broken = True
    with pytest.raises(UserError, match="diverged"):
        save_checkpoint(run.state, tmp_path, facts=run.facts)
    run.state.broken = False
    next(iter(run.state.optimizer.state.values()))["exp_avg_sq"][0] = math.inf
    with pytest.raises(UserError, match="exp_avg_sq"):
        save_checkpoint(run.state, tmp_path, facts=run.facts)
    assert list(tmp_path.iterdir()) == []


# Pruning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "left"), [(0, [2, 9, 10]), (1, [10]), (2, [9, 10]), (3, [2, 9, 10]), (7, [2, 9, 10])]
)
def test_the_oldest_go_first(folder: Path, limit: int, left: list[int]) -> None:
    prune_checkpoints(folder, limit)
    assert [step for step, _ in list_checkpoints(folder)] == left
    assert all(not path.name.startswith((files.TRASH, files.STAGING)) for path in folder.iterdir())


def test_the_newest_whole_one_stays_even_below_broken_ones(folder: Path) -> None:
    flip(folder / "checkpoint-10" / checkpoints.STATE_NAME)
    prune_checkpoints(folder, 1)
    assert [step for step, _ in list_checkpoints(folder)] == [9]


def test_nothing_is_removed_when_none_is_whole(folder: Path) -> None:
    for _, path in list_checkpoints(folder):
        flip(path / checkpoints.STATE_NAME)
    assert prune_checkpoints(folder, 1) == []
    assert len(list_checkpoints(folder)) == 3


# Being killed ----------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process; no handler catches it by accident."""


def test_killed_at_any_file_operation_leaves_a_checkpoint_to_continue_from(
    small_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End the process before each durable operation of save and prune in turn, clean-up included."""
    run = small_run(total_steps=3)
    train(run, 1)
    save_checkpoint(run.state, tmp_path / "start", facts=run.facts)
    train(run, 2)
    operations = {
        owner: {name: getattr(owner, name) for name in names}
        for owner, names in {os: ("replace", "fsync", "unlink", "rmdir"), shutil: ("rmtree",)}.items()
    }

    def save_and_prune(folder: Path, allowed: int) -> bool:
        """Whether it came to the end with only `allowed` operations before the kill."""
        left = allowed

        def limited(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return call(*args, **kwargs)

            return wrapper

        with monkeypatch.context() as patch:
            for owner, calls in operations.items():
                for name, call in calls.items():
                    patch.setattr(owner, name, limited(call))
            try:
                save_checkpoint(run.state, folder, facts=run.facts)
                prune_checkpoints(folder, 1)
            except Killed:
                return False
        return True

    for allowed in range(100):
        folder = Path(shutil.copytree(tmp_path / "start", tmp_path / f"killed-{allowed}"))
        finished = save_and_prune(folder, allowed)
        files.sweep(folder)
        found = find_checkpoint(folder, "latest")
        assert found is not None, allowed
        assert found.name in ("checkpoint-1", "checkpoint-2")
        if finished:
            assert [step for step, _ in list_checkpoints(folder)] == [2]
            break
    assert finished
    assert allowed > 10  # the kills really hit the operations
