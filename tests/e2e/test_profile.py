"""`simpletuner profile`: real steps under a profiler, whose parts add up, beside a run that notices nothing."""

from __future__ import annotations

import gzip
import json

import pytest
from projects import Project

from simpletuner.cli.main import main
from simpletuner.runtime.regions import PREFIX, STEP


def test_parts_of_a_step_add_up_and_nothing_else_is_left(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    options = project.arguments(max_train_steps=2, gradient_checkpointing_blocks=1, memory_probe=False)[1:]
    assert main(["profile", "--steps", "1", "--json", *options, "use_ema=true", "gradient_checkpointing=true"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["steps"] == 1
    assert told["shapes"] == {"2 clips of 96x64@9": 1}

    folder = project.output / "profile"
    with gzip.open(folder / "trace.json.gz", "rt") as trace:
        events = json.load(trace)["traceEvents"]
    steps = [event["dur"] for event in events if event.get("name") == PREFIX + STEP and event["ph"] == "X"]
    seconds = {tuple(part["part"]): part["host_seconds"] for part in told["parts"]}
    assert sum(seconds.values()) == pytest.approx(1e-6 * sum(steps), rel=1e-3)
    assert sum(seconds.values()) == pytest.approx(told["seconds_per_traced_step"], rel=0.2)

    assert {place[0] for place in seconds if place} == {
        "waiting for data", "batch to the device", "forward", "backward", "limiting gradients", "optimizer",
        "running average",
    }  # fmt: skip
    for part in ("forward", "backward"):  # each block by itself, and what lies in it
        assert {place[1] for place in seconds if place[0:1] == (part,) and len(place) > 1} >= {"block 0", "block 1"}
        assert {place[2] for place in seconds if place[0:2] == (part, "block 1") and len(place) > 2} >= {
            "attn1", "attn2", "ff",
        }  # fmt: skip
    assert seconds["backward", "computed again"] > 0
    assert any(one["operation"].startswith("aten::") and one["calls"] > 1 for one in told["operations"])
    # This optimizer's counts of steps, which lie on the host everywhere; the step itself asks for nothing.
    assert {(read["operation"], read["part"]) for read in told["host_reads"]} == {
        ("aten::_local_scalar_dense", "optimizer")
    }

    page = (folder / "summary.txt").read_text()
    assert "1 step (1 x 2 clips of 96x64@9)" in page
    assert len(page.splitlines()) < 62
    # The run itself has not begun: no checkpoint, weights, journal or metrics.
    assert {path.name for path in project.output.iterdir()} == {"profile"}


def test_steps_must_be_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--steps", "0"]) == 2
    assert "--steps '0'" in capsys.readouterr().err
