"""The list of runs tells what is true: by the lock, the journal and the checkpoints, never by hope."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simpletuner.cli.main import main
from simpletuner.core.errors import UserError
from simpletuner.events.run import open_run
from simpletuner.events.types import Noticed, RunFinished, RunStarted, StepFinished, TrainingBegan
from simpletuner.recipes.runs import find_runs, read_run
from simpletuner.runtime.lock import hold_folder
from simpletuner.training.manifest import write_manifest

DOCUMENT = {
    "options": {
        "model": {"model_family": {"value": "ltxvideo", "origin": "config/films/config.json:3"}},
        "reporting": {
            "webhook_config": {"value": "***", "origin": "command line"},
            "tracker_run_name": {"value": "night shift", "origin": "command line"},
            "push_to_hub": {"value": True, "origin": "command line"},
        },
    }
}
QUIET = ("journal", "metrics")


def step(number: int) -> StepFinished:
    return StepFinished(number, 1, 0.5, 1e-4, 0.7, 2, 336, 0.01)


def play(folder: Path, first: int, last: int, *end: RunFinished, resumed_from: str = "") -> None:
    with open_run(folder, DOCUMENT, "night", sinks=QUIET) as run:
        run.emit(RunStarted("night", str(folder), resumed_from))
        run.emit(TrainingBegan(first - 1, 100, 1, 10, 10, 2, 2))
        for number in range(first, last + 1):
            run.emit(step(number))
        for event in end:
            run.emit(event)


def save(folder: Path, number: int) -> None:
    path = folder / f"checkpoint-{number}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"w" * 10)
    write_manifest(path, number)


@pytest.mark.parametrize("outcome", ["finished", "stopped", "failed"])
def test_an_end_that_was_told_is_believed(tmp_path: Path, outcome: str) -> None:
    play(tmp_path, 1, 5, RunFinished(5, outcome, "because"))
    found = read_run(tmp_path)
    assert found is not None
    assert (found.state, found.facts.step, found.facts.total_steps) == (outcome, 5, 100)


def test_without_an_end_it_crashed_where_the_journal_stops(tmp_path: Path) -> None:
    play(tmp_path, 1, 7)
    save(tmp_path, 4)
    save(tmp_path, 6)
    (tmp_path / "checkpoint-6" / "weights").write_bytes(b"short")
    found = read_run(tmp_path)
    assert found is not None
    assert found.told == "crashed at step 7 of 100"
    assert found.advice == "goes on from checkpoint-4, 3 steps are done again"
    assert found.command == (
        "simpletuner train --config config/films/config.json 'tracker_run_name=night shift' push_to_hub=true"
    )
    assert found.missing == ("webhook_config",)
    assert found.working_folder == str(Path.cwd())


def test_a_later_start_decides(tmp_path: Path) -> None:
    play(tmp_path, 1, 9, RunFinished(9, "stopped"))
    play(tmp_path, 7, 7, resumed_from="x/checkpoint-6")
    assert read_run(tmp_path).told == "crashed at step 7 of 100"  # type: ignore[union-attr]
    play(tmp_path, 1, 2)
    found = read_run(tmp_path)
    assert found is not None
    assert found.told == "crashed at step 2 of 100"
    assert found.advice == "no checkpoint was saved: it would begin anew"


def test_the_lock_tells_who_is_at_work(tmp_path: Path) -> None:
    with hold_folder(tmp_path):
        with open_run(tmp_path, DOCUMENT, "night", sinks=QUIET) as run:
            run.emit(Noticed("note", "planning"))
            assert read_run(tmp_path).state == "starting"  # type: ignore[union-attr]
        play(tmp_path, 1, 3)
        assert read_run(tmp_path).told == "running at step 3 of 100"  # type: ignore[union-attr]
        play(tmp_path, 1, 3, RunFinished(3, "finished"))
        assert read_run(tmp_path).state == "ending"  # type: ignore[union-attr]
    assert read_run(tmp_path).state == "finished"  # type: ignore[union-attr]
    with hold_folder(tmp_path):  # a look takes nothing away
        pass


KILLED = """
import os, sys
from pathlib import Path
from simpletuner.runtime.lock import hold_folder
from simpletuner.events.run import open_run
from simpletuner.events.types import RunStarted, StepFinished
folder = Path(sys.argv[1])
with hold_folder(folder), open_run(folder, {}, "night", sinks=("journal",)) as run:
    run.emit(RunStarted("night", sys.argv[1]))
    run.emit(StepFinished(1, 1, 0.5, 1e-4, 0.7, 2, 336, 0.01))
    os.kill(os.getpid(), 9)
"""


def test_a_killed_run_is_not_running(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode == -9
    assert read_run(tmp_path).told == "crashed at step 1"  # type: ignore[union-attr]


def test_runs_are_found_below_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play(tmp_path / "films" / "a", 1, 2, RunFinished(2, "finished"))
    play(tmp_path / "b", 1, 3)
    (tmp_path / "c").mkdir()
    assert [run.folder.name for run in find_runs([tmp_path])] == ["b", "a"]
    assert main(["runs", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{tmp_path / 'b'}  night  crashed at step 3 of 100, ")
    assert told[2].startswith("    simpletuner train --config config/films/config.json")
    assert "done; a larger max_train_steps trains on" in told[-1]
    assert main(["runs", "--json", str(tmp_path)]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["state"] for document in documents] == ["crashed", "finished"]
    with pytest.raises(UserError, match="there is no folder"):
        find_runs([tmp_path / "nowhere"])
