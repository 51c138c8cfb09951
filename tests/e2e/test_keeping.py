"""What a run keeps and when: epochs, safety checkpoints, wishes by signal, commands, a full disk, other batches."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from projects import Project

from simpletuner.cli.main import main
from simpletuner.core.errors import ExitCode
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.recipes import saving


def checkpoints(output: Path) -> dict[int, bool]:
    """Step -> whether it is a safety checkpoint."""
    found = {}
    for path in output.glob("checkpoint-*"):
        found[int(path.name.split("-")[1])] = json.loads((path / "training_state.json").read_text())["is_rolling"]
    return dict(sorted(found.items()))


def at_step(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Any]) -> None:
    """Do something while the model works on a step."""

    call = FlowMatching.__call__

    def interrupted(self: FlowMatching, transformer: Any, batch: Any, step: int) -> tuple[Any, ...]:
        actions.pop(step, lambda: None)()
        return call(self, transformer, batch, step)

    monkeypatch.setattr(FlowMatching, "__call__", interrupted)


def noting(path: Path) -> str:
    """A command that writes its arguments down, one line a call."""
    program = f"import sys; open({str(path)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no signals to wish with")
def test_epochs_safety_checkpoints_wishes_and_commands(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, {5: lambda: os.kill(os.getpid(), signal.SIGUSR1)})
    noted = project.folder / "noted.txt"
    code = main(
        project.arguments(
            max_train_steps=11, num_train_epochs=5, strict_epoch_limit="true", train_batch_size=1,
            checkpoint_step_interval=0, checkpoint_epoch_interval=2, checkpointing_rolling_steps=3,
            post_checkpoint_script=noting(noted) + " '{global_step} {model_family}' {local_checkpoint_path}",
        )
    )  # fmt: skip
    assert code == 0
    # Four clips: the second epoch ends at step 8. Safety checkpoints of steps 3 and 6 have gone.
    assert checkpoints(project.output) == {5: False, 8: False, 9: True, 11: False}
    lines = noted.read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [[str(step), "ltxvideo"] for step in (3, 5, 6, 8, 9, 11)]
    assert lines[-1].endswith(str(project.output / "checkpoint-11"))
    events = [json.loads(line) for line in (project.output / "journal.jsonl").read_text().splitlines()]
    saved = [event for event in events if event["kind"] == "checkpoint_saved"]
    assert [(event["step"], event["is_rolling"]) for event in saved] == [
        (3, True), (5, False), (6, True), (8, False), (9, True), (11, False),
    ]  # fmt: skip
    assert all(event["seconds"] >= event["stalled_seconds"] > 0 for event in saved)


def test_a_full_disk_asks_for_help_saves_once_more_and_stops(project: Project, capfd: pytest.CaptureFixture) -> None:
    noted = project.folder / "noted.txt"
    settings = {"disk_low_threshold": "900T", "disk_low_action": "script", "max_train_steps": 4}
    code = main(project.arguments(**settings, disk_low_script=noting(noted) + " {global_step}"))
    assert code == ExitCode.DISK
    assert noted.read_text() == "3\n"
    assert checkpoints(project.output) == {3: False}
    assert "less than 900T free" in capfd.readouterr().err


@pytest.mark.slow
def test_waiting_for_room_changes_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    room = iter([0, 0, 0, 10**18])
    monkeypatch.setattr(saving.Archive, "_free", lambda self: next(room, 10**18))
    monkeypatch.setattr(saving, "PAUSE_SECONDS", 0.01)
    assert main(project.arguments(disk_low_threshold="20GiB", disk_low_action="wait")) == 0
    assert checkpoints(project.output) == {3: False, 6: False}
    assert capfd.readouterr().out.count("disk_low_action wait") == 1


@pytest.mark.slow
def test_an_epoch_run_with_larger_batches_trains_the_epochs_that_are_left(
    project: Project, capfd: pytest.CaptureFixture
) -> None:
    settings = {"max_train_steps": 0, "checkpoint_step_interval": 0, "checkpoint_epoch_interval": 1}
    assert main(project.arguments(**settings, num_train_epochs=2, train_batch_size=1)) == 0
    assert checkpoints(project.output) == {4: False, 8: False}
    capfd.readouterr()
    assert main(project.arguments(**settings, num_train_epochs=4, train_batch_size=2)) == 0
    told = capfd.readouterr().out
    assert "Carried over: weights, optimizer" in told
    assert "a step has up to 2 clips now (1 before)" in told
    # Two epochs of two steps are left; starting again finds nothing to do.
    assert max(checkpoints(project.output)) == 12
    assert main(project.arguments(**settings, num_train_epochs=4, train_batch_size=2)) == 0
    assert "nothing to train" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_step_saves_and_stops(
    project: Project, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    settings = {"train_batch_size": 1, "gradient_accumulation_steps": 3, "max_train_steps": 6}
    straight = project.folder / "straight"
    assert main(project.arguments(**settings, output_dir=straight)) == 0
    # Four clips: the steps of an epoch have 3 and 1 micro-batches. The signal comes in the first one of step 3.
    at_step(monkeypatch, {3: lambda: os.kill(os.getpid(), number)})
    assert main(project.arguments(**settings)) == 128 + number
    assert max(checkpoints(project.output)) == 2  # what was done of step 3 is given up
    assert main(project.arguments(**settings)) == 0
    found = [json.loads(line)["loss"] for line in (project.output / "metrics.jsonl").read_text().splitlines()]
    assert found == [json.loads(line)["loss"] for line in (straight / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_damaged_newer_checkpoints_are_deleted_only_on_request(project: Project, capfd: pytest.CaptureFixture) -> None:
    assert main(project.arguments()) == 0
    (project.output / "checkpoint-6" / "optimizer.safetensors").write_bytes(b"damaged")
    capfd.readouterr()
    assert main(project.arguments(max_train_steps=5, delete_invalid_checkpoints="true")) == 0
    assert "was damaged and is deleted" in capfd.readouterr().out
    assert checkpoints(project.output) == {3: False, 5: False}
