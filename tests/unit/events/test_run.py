"""The run folder: what is written, that it survives a kill, and that sinks never stop training."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from simpletuner.core.errors import UserError
from simpletuner.events.lines import LineFile
from simpletuner.events.run import Run, describe_versions, open_run
from simpletuner.events.sinks.console import ConsoleSink
from simpletuner.events.sinks.journal import JOURNAL, kind_of, read_journal
from simpletuner.events.sinks.metrics import METRICS, MetricsSink, read_metrics
from simpletuner.events.types import (
    CheckpointSaved,
    Noticed,
    RunFinished,
    RunStarted,
    StageAdvanced,
    StageStarted,
    StepFinished,
    StoryTold,
)

QUIET = ("journal", "metrics")


def step(number: int, loss: float = 0.5) -> StepFinished:
    return StepFinished(number, 1, loss, 1e-4, 0.7, 2, 336, 0.01, 1000, {"flow": loss})


@pytest.mark.needs_torch
def test_the_folder_tells_what_was_run(tmp_path: Path) -> None:
    document = {"options": {"lora_rank": {"value": 16, "origin": "default"}}}
    with open_run(tmp_path / "out", document, "demo", seed=7, sinks=QUIET) as run:
        run.emit(RunStarted("demo", str(run.folder)))
        run.emit(RunFinished(0, "finished"))
    assert json.loads((tmp_path / "out" / "resolved_config.json").read_text()) == document
    versions = json.loads((tmp_path / "out" / "versions.json").read_text())
    assert versions["seed"] == 7
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["packages"]["torch"]
    assert describe_versions()["platform"]


def test_the_journal_holds_every_event_in_order(tmp_path: Path) -> None:
    with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        run.emit(StoryTold("Clips", (("found", "6"),)))
        run.emit(step(1))
        lines = list(read_journal(tmp_path))  # readable while the run goes on
        assert [line["kind"] for line in lines] == ["story_told", "step_finished"]
        assert [line["sequence"] for line in lines] == [1, 2]
        assert lines[0]["lines"] == [["found", "6"]]
        assert lines[1]["terms"] == {"flow": 0.5}
        assert lines[1]["time"].endswith("Z")
    with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        run.emit(step(2))
    assert [(line["sequence"], line["start"]) for line in read_journal(tmp_path)] == [(1, 1), (2, 1), (3, 2)]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        run.emit(step(1, float("nan")))
        run.emit(step(2, float("inf")))
    for line in (tmp_path / JOURNAL).read_text().splitlines():
        record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert record["loss"] is None
        assert record["terms"] == {"flow": None}


@pytest.mark.parametrize(
    "torn", [b'{"sequence":3,"ki', b'{"sequence":3}', b"\0\0\0\0", b"\0" * 70000, b"[1]\n", b'{"a"\n{']
)
def test_a_torn_end_is_ignored_and_repaired(torn: bytes, tmp_path: Path) -> None:
    with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        run.emit(step(1))
        run.emit(step(2))
    whole = (tmp_path / JOURNAL).read_bytes()
    with (tmp_path / JOURNAL).open("ab") as handle:
        handle.write(torn)
    assert [line["sequence"] for line in read_journal(tmp_path)] == [1, 2]
    with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        assert (tmp_path / JOURNAL).read_bytes() == whole
        run.emit(step(3))
    assert [line["sequence"] for line in read_journal(tmp_path)] == [1, 2, 3]


def test_a_line_longer_than_the_tail_is_kept(tmp_path: Path) -> None:
    lines = LineFile(tmp_path / "long.jsonl")
    lines.append({"text": "x" * 300_000})
    lines.close()
    again = LineFile(tmp_path / "long.jsonl")
    again.close()
    assert again.last == {"text": "x" * 300_000}


KILLED = """
import os, sys
from pathlib import Path
from simpletuner.events.run import open_run
from simpletuner.events.types import RunStarted, StepFinished
with open_run(Path(sys.argv[1]), {}, "demo", sinks=("journal", "metrics")) as run:
    run.emit(RunStarted("demo", sys.argv[1]))
    for number in range(1, 8):
        run.emit(StepFinished(number, 1, 0.5, 1e-4, 0.7, 2, 336, 0.01))
    os.kill(os.getpid(), 9)
"""


def test_nothing_told_is_lost_by_a_kill(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert [line["kind"] for line in read_journal(tmp_path)] == ["run_started"] + ["step_finished"] * 7
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 8))


def test_resuming_replaces_the_metrics_of_repeated_steps(tmp_path: Path) -> None:
    with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        for number in range(1, 9):
            run.emit(step(number, 1.0))
    with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        for number in range(6, 11):
            run.emit(step(number, 2.0))
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
        *((number, 1.0) for number in range(1, 6)),
        *((number, 2.0) for number in range(6, 11)),
    ]
    # The journal is never rewritten.
    assert len([line for line in read_journal(tmp_path) if line["kind"] == "step_finished"]) == 13


def test_a_fresh_start_in_the_same_folder_begins_new_metrics(tmp_path: Path) -> None:
    for _ in range(2):
        with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
            run.emit(step(1))
            run.emit(step(2))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_torn_metrics_are_repaired(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step":1,"loss":0.5}\n{"step":2,"lo')
    sink = MetricsSink(tmp_path)
    sink.receive(step(2), 1)
    sink.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_failing_sink_is_switched_off_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: MetricsSink, event: object, sequence: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(MetricsSink, "receive", fail)
    with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        run.emit(step(1))
        run.emit(step(2))
    told = list(read_journal(tmp_path))
    assert [line["kind"] for line in told] == ["step_finished", "noticed", "step_finished"]
    assert "'metrics'" in told[1]["text"]


def test_a_sink_that_cannot_open_is_told_too(tmp_path: Path) -> None:
    (tmp_path / METRICS).mkdir()
    with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        run.emit(step(1))
    assert [line["kind"] for line in read_journal(tmp_path)] == ["noticed", "step_finished"]


def test_a_full_disk_stops_the_run_with_a_whole_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def half_then_full(descriptor: int, data: bytes) -> int:
        if b'"step":2' in data:
            return write(descriptor, data[:20])
        if b'"kind"' not in data or b'"outcome"' in data:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    with pytest.raises(UserError, match="no space left") as caught, open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        run.emit(RunStarted("demo", str(tmp_path)))
        run.emit(step(1))
        monkeypatch.setattr(os, "write", half_then_full)
        run.emit(step(2))
    assert caught.value.exit_code == 6
    monkeypatch.undo()
    assert (tmp_path / JOURNAL).read_bytes().endswith(b"\n")
    assert [line["kind"] for line in read_journal(tmp_path)] == ["run_started", "step_finished"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(RuntimeError("boom"), "failed"), (KeyboardInterrupt(), "stopped"), (UserError("no"), "failed")],
)
def test_the_end_is_recorded_when_the_body_fails(error: BaseException, outcome: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        run.emit(RunStarted("demo", str(tmp_path)))
        run.emit(step(4))
        raise error
    last = list(read_journal(tmp_path))[-1]
    assert (last["kind"], last["outcome"], last["step"]) == ("run_finished", outcome, 4)


def test_events_of_several_threads_are_told_one_by_one(tmp_path: Path) -> None:
    with open_run(tmp_path, {}, "demo", sinks=("journal",)) as run:
        threads = [
            threading.Thread(target=lambda: [run.emit(Noticed("note", "x" * 200)) for _ in range(100)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [line["sequence"] for line in read_journal(tmp_path)] == list(range(1, 401))


def test_a_folder_that_cannot_be_written_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="output_dir"), open_run(tmp_path / "file" / "run", {}, "demo"):
        pass


def test_unknown_sinks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown sink 'jornal'"):
        Run(tmp_path, "demo", ("jornal",))


def test_a_step_costs_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run(tmp_path, {}, "demo") as run:
        run.emit(StageStarted("train", "Training", 2000, "steps"))
        started = time.process_time()
        for number in range(1, 1001):
            run.emit(step(number))
        per_step = (time.process_time() - started) / 1000
    assert per_step < 0.4e-3, f"{per_step * 1e3:.3f} ms"  # about 0.03 ms; the bound leaves room for a busy machine


def test_kinds_are_snake_case() -> None:
    assert kind_of(CheckpointSaved) == "checkpoint_saved"
    assert kind_of(StageAdvanced) == "stage_advanced"


def test_the_console_sink_is_built_from_the_folder_alone(tmp_path: Path) -> None:
    ConsoleSink(tmp_path).close()
