"""A run whose numbers stop being numbers: passes over, goes back, goes on with other clips, or ends with code 5."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import Project
from safetensors.torch import load_file

from simpletuner.cli.main import main
from simpletuner.core.errors import ExitCode
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.recipes.recovery import Recovery

ADAPTER = "pytorch_lora_weights.safetensors"
SETTINGS = {"max_train_steps": 10, "checkpoint_step_interval": 3, "train_batch_size": 1, "broken_steps_limit": 1}


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Collection[int]], None]:
    """Make the loss of the draws with these running numbers no number, in every run that follows."""

    call = FlowMatching.__call__

    def spoil(numbers: Collection[int]) -> None:
        def poisoned(self: FlowMatching, transformer: Any, batch: Any, step: int) -> tuple[Any, ...]:
            first, *rest = call(self, transformer, batch, step)
            if not set(batch.sample_numbers) & set(numbers):
                return (first, *rest)
            return (replace(first, value=first.value * math.nan, per_sample=first.per_sample * math.nan), *rest)

        monkeypatch.setattr(FlowMatching, "__call__", poisoned)

    return spoil


def journal(output: Path, *kinds: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] in kinds]


def test_a_run_goes_back_and_on_with_other_clips(project: Project, poison: Callable[..., None]) -> None:
    poison({4, 5})  # draws of steps 5 and 6; the newest checkpoint is that of step 3
    assert main(project.arguments(**SETTINGS)) == 0
    skipped, (back,) = journal(project.output, "step_skipped"), journal(project.output, "rolled_back")
    assert [event["step"] for event in skipped] == [5, 6]
    assert all(len(event["samples"]) == 1 and "not a finite number" in event["reason"] for event in skipped)
    assert (back["step"], back["to_step"], Path(back["path"]).name) == (6, 3, "checkpoint-3")
    assert [line["step"] for line in project.metrics()] == list(range(1, 11))
    state = json.loads((project.output / "checkpoint-10" / "training_state.json").read_text())
    # Ten steps, and three draws more: those of steps 4 to 6 that led into the failure.
    assert (state["rollbacks"], state["skipped_steps"], 4 * (state["batches"]["epoch"] - 1)) == (1, [], 12)
    assert state["batches"]["drawn"] == 1


@pytest.mark.slow
def test_a_run_that_is_killed_after_it_went_back_does_so_again(
    project: Project, poison: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison({4, 5})
    assert main(project.arguments(**SETTINGS)) == 0
    final = load_file(project.output / ADAPTER)
    again = project.folder / "again"
    go_back = Recovery.go_back

    def die(self: Recovery, reason: str) -> None:
        go_back(self, reason)
        raise KeyboardInterrupt  # as if the process had ended right after it went back

    with monkeypatch.context() as patch:
        patch.setattr(Recovery, "go_back", die)
        assert main(project.arguments(**SETTINGS, output_dir=again)) == ExitCode.INTERRUPTED
    assert main(project.arguments(**SETTINGS, output_dir=again)) == 0
    found = load_file(again / ADAPTER)
    assert all(torch.equal(tensor, found[name]) for name, tensor in final.items())


@pytest.mark.slow
def test_a_run_that_cannot_recover_ends_with_code_5_and_leaves_only_good_checkpoints(
    project: Project, poison: Callable[..., None], capfd: pytest.CaptureFixture
) -> None:
    poison(range(7, 1000))
    assert main(project.arguments(**SETTINGS)) == ExitCode.NUMERICS
    assert "It has gone back to a checkpoint 2 times" in capfd.readouterr().err
    backs = journal(project.output, "rolled_back")
    # The second failure makes the checkpoint before the first one suspect, so the one before that is taken.
    assert [Path(event["path"]).name for event in backs] == ["checkpoint-6", "checkpoint-3"]
    assert {path.name for path in project.output.glob("*checkpoint-*")} == {"checkpoint-3", "diverged-checkpoint-6"}
    assert journal(project.output, "run_finished")[-1]["outcome"] == "failed"
    assert not (project.output / ADAPTER).exists()
    assert torch.isfinite(next(iter(load_file(project.output / "checkpoint-3" / ADAPTER).values()))).all()


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(
    project: Project, poison: Callable[..., None], capfd: pytest.CaptureFixture
) -> None:
    poison({1})
    assert main(project.arguments(**{**SETTINGS, "broken_steps_limit": 0})) == ExitCode.NUMERICS
    assert "no checkpoint before it" in capfd.readouterr().err
    assert not list(project.output.glob("*checkpoint-*"))
