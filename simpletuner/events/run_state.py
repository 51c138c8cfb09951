"""What the journal alone tells of a run: how far it came, and whether an end was told.

Fast also for a journal of a million steps, because of the lines of steps only the last one is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.events.sinks.journal import JOURNAL

_STEP = b'"kind":"step_finished"'
_WANTED = tuple(
    f'"kind":"{kind}"'.encode()
    for kind in ("run_started", "training_began", "checkpoint_saved", "uploaded", "run_finished")
)


@dataclass(frozen=True)
class RunState:
    """One run by its journal.

    Attributes:
        name: Its name.
        step: Last optimizer step that was told, over all starts of the present story.
        total_steps: Length of the run; 0 when the loop was never reached.
        outcome: How the last start ended: "finished", "stopped", "failed"; empty when no end was told.
        detail: What was said about the end.
        resumed_from: Checkpoint of the last start; empty for a fresh one.
        starts: Starts of the program that got as far as `run_started`.
        is_beginning: Whether a newer start has not got that far (yet).
        began, last_time: First and last moment of the journal, ISO 8601 in UTC.
        checkpoints: Steps of the checkpoints that were told.
    """

    name: str
    step: int
    total_steps: int
    outcome: str
    detail: str
    resumed_from: str
    starts: int
    is_beginning: bool
    began: str
    last_time: str
    checkpoints: tuple[int, ...]


def read_run_state(folder: Path) -> RunState | None:
    """The state of the run in `folder`; None when there is no journal with an event."""
    facts: dict[str, Any] = {"name": "", "total": 0, "end": {}, "from": "", "starts": 0, "start": 0}
    first: dict[str, Any] = {}
    step_line, last_line, step = b"", b"", 0
    saved: set[int] = set()
    try:
        handle = (folder / JOURNAL).open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    with handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            last_line = line
            if _STEP in line:
                step_line = line
                continue
            if first and not any(kind in line for kind in _WANTED):
                continue
            event = _read(line)
            first = first or event
            if event.get("kind") == "run_started":
                is_fresh = not event.get("resumed_from")
                step, step_line = (0, b"") if is_fresh else (max(step, _step_of(step_line)), b"")
                saved = set() if is_fresh else saved
                facts |= {"name": event["run_name"], "from": event.get("resumed_from", ""), "end": {}}
                facts |= {"starts": facts["starts"] + 1, "start": event.get("start", 0)}
            elif event.get("kind") == "training_began":
                facts["total"], step = int(event["total_steps"]), int(event["step"])
            elif event.get("kind") == "checkpoint_saved":
                saved.add(int(event["step"]))
            elif event.get("kind") == "run_finished":
                facts["end"] = event
    last = _read(last_line)
    if not last:
        return None
    return RunState(
        name=facts["name"], step=max(step, _step_of(step_line), int(facts["end"].get("step", 0))),
        total_steps=facts["total"], outcome=facts["end"].get("outcome", ""), detail=facts["end"].get("detail", ""),
        resumed_from=facts["from"], starts=facts["starts"], is_beginning=last.get("start", 0) > facts["start"],
        began=first.get("time", ""), last_time=last.get("time", ""), checkpoints=tuple(sorted(saved)),
    )  # fmt: skip


def _step_of(line: bytes) -> int:
    return int(_read(line).get("step", 0))


def _read(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
