"""kill -9 at random moments, each followed by a resume: the final adapter is that of the undisturbed run."""

from __future__ import annotations

import json
import os
import random
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

    def run(self, arguments: list[str], kill_after: float | None = None) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": arguments, "kill_after": kill_after, "log": str(self._folder / "log.txt")}
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
    """Every kill hits a run of its own, which is then resumed; half of the runs write beside training, half do not."""
    steps, kills = 60, int(os.environ.get("KILLS", "50"))
    rhythm = {"checkpoint_step_interval": 4, "checkpoint_in_background": str(in_background).lower()}
    straight = finish(server, project, steps, project.folder / "straight", **rhythm)
    timed = project.arguments(max_train_steps=steps, output_dir=project.folder / "timed", **SETTINGS, **rhythm)
    seconds = server.run(timed)["seconds"]
    draw, hits, writing = random.Random(f"kills {in_background}"), 0, 0
    for number in range(kills):
        output = project.folder / f"killed-{number}"
        words = project.arguments(max_train_steps=steps, output_dir=output, **SETTINGS, **rhythm)
        hits += server.run(words, seconds * draw.random())["killed"]
        writing += any(path.name.startswith(".staging-") for path in output.rglob(".staging-*"))
        assert_same(finish(server, project, steps, output, **rhythm), straight)
    with capfd.disabled():
        print(f"\n{hits} of {kills} runs were killed, {writing} of them while a file was being written")
    assert hits > 0.8 * kills
