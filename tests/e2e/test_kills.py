"""kill -9 at random moments, each followed by a resume: the final adapter is that of the undisturbed run."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import Project
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ADAPTER = "pytorch_lora_weights.safetensors"
SETTINGS = {"use_ema": "true", "gradient_accumulation_steps": 2, "train_batch_size": 1, "lora_dropout": 0.1}


class Server:
    """Runs of `simpletuner`, started and killed by `kill_server.py`."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(
        self, arguments: list[str], kill_after: float | None = None, kill_while_writing: tuple[Path, int] | None = None
    ) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        folder, number = kill_while_writing or (None, 0)
        request = {
            "arguments": arguments,
            "kill_after": kill_after,
            "kill_while_writing": [str(folder), number] if folder else None,
            "log": str(self._folder / "log.txt"),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert answer["killed"] or answer["code"] == 0, (self._folder / "log.txt").read_text()[-4000:]
        return answer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("kill_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == "ready"
        yield Server(process, tmp_path)
        assert process.stdin is not None
        process.stdin.close()


def results(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on kills."""
    state = json.loads((folder / "checkpoint-last" / "training_state.json").read_text())
    found: dict[str, Any] = {"batches": state["batches"], "optimizer": state["optimizer"]}
    for name in (ADAPTER, f"ema/{ADAPTER}", "checkpoint-last/optimizer.safetensors", "checkpoint-last/ema.safetensors"):
        found |= {f"{name}/{key}": tensor for key, tensor in load_file(folder / name).items()}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found["losses"] = [(line["step"], line["loss"]) for line in map(json.loads, lines)]
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        equal = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert equal, name


def finish(server: Server, project: Project, steps: int, output: Path, **settings: Any) -> dict[str, Any]:
    """Run to the end and read what is there."""
    server.run(project.arguments(max_train_steps=steps, output_dir=output, **SETTINGS, **settings))
    assert not [path for path in output.rglob(".*") if path.name.startswith((".staging-", ".trash-", ".replaced-"))]
    (output / "checkpoint-last").symlink_to(output / f"checkpoint-{steps}")
    return results(output)


def test_a_run_killed_three_times_ends_as_if_nothing_had_happened(server: Server, project: Project) -> None:
    steps, rhythm = 14, {"checkpoint_step_interval": 3, "checkpointing_rolling_steps": 1}
    straight, output = project.folder / "straight", project.output
    seconds = server.run(project.arguments(max_train_steps=steps, output_dir=straight, **SETTINGS, **rhythm))["seconds"]
    draw, kills = random.Random(5), 0
    for _ in range(3):
        words = project.arguments(max_train_steps=steps, **SETTINGS, **rhythm)
        kills += server.run(words, seconds * draw.uniform(0.2, 0.6))["killed"]
    assert kills
    expected = finish(server, project, steps, straight, **rhythm)  # finds nothing to train
    assert_same(finish(server, project, steps, output, **rhythm), expected)


@pytest.mark.slow
@pytest.mark.parametrize("in_background", [True, False])
def test_a_hundred_kills_of_a_run_of_sixty_steps(
    server: Server, project: Project, in_background: bool, capfd: pytest.CaptureFixture
) -> None:
    """A run is killed and resumed again and again until it ends, then the next; half of all write beside training.

    Every second kill comes at a random moment, every other one in the middle of writing a checkpoint. After each kill
    the newest checkpoint is that of the undisturbed run at the same step, and so is what each run leaves at its end.
    """
    steps, wanted = 60, int(os.environ.get("KILLS", "50"))
    rhythm = {"checkpoint_step_interval": 4, "checkpoints_total_limit": 0} | {
        "checkpoint_in_background": str(in_background).lower()
    }
    folder = project.folder / "straight"
    server.run(project.arguments(max_train_steps=4, output_dir=project.folder / "caches", **SETTINGS, **rhythm))
    short = server.run(project.arguments(max_train_steps=4, output_dir=project.folder / "short", **SETTINGS, **rhythm))[
        "seconds"
    ]
    seconds = server.run(project.arguments(max_train_steps=steps, output_dir=folder, **SETTINGS, **rhythm))["seconds"]
    straight = finish(server, project, steps, folder, **rhythm)
    longest = short + (seconds - short) * 20 / steps  # about twenty steps: so far a run comes between two kills
    draw, kills, torn, runs = random.Random(f"kills {in_background}"), 0, 0, 0
    while kills < wanted:
        output = project.folder / f"killed-{runs}"
        words = project.arguments(max_train_steps=steps, output_dir=output, **SETTINGS, **rhythm)
        was_killed = True
        while was_killed and kills < wanted:
            if kills % 2:
                was_killed = server.run(words, kill_while_writing=(output, draw.randint(1, 3)))["killed"]
            else:
                was_killed = server.run(words, short * 0.2 + draw.random() * longest)["killed"]
            kills += was_killed
            torn += any(output.glob("**/.staging-*"))
            assert_newest_is_of(folder, output)
        assert_same(finish(server, project, steps, output, **rhythm), straight)
        shutil.rmtree(output)
        runs += 1
    with capfd.disabled():
        print(f"\n{kills} kills of {runs} runs, {torn} of them while a file was being written")
    assert torn > 0.3 * kills


def assert_newest_is_of(straight: Path, output: Path) -> None:
    """What a kill leaves as the newest checkpoint is whole, and the same as that of the undisturbed run."""
    newest = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), default=None)
    if newest is None:
        return
    wanted = straight / newest.name
    assert {path.name for path in newest.iterdir()} == {path.name for path in wanted.iterdir()}
    for path in wanted.glob("*.safetensors"):
        assert_same(load_file(newest / path.name), load_file(path))
