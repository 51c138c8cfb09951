"""The durable record of a run: every event, one JSON line each, in `journal.jsonl`.

A line is `{"sequence", "start", "time", "kind", ...fields of the event}`. Sequence numbers grow by
one over all starts in one folder, `start` counts those from 1, times are UTC. The journal is the
one sink that stops the run when it cannot write: it is what every later reader (report, run list,
resending) takes for true.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from simpletuner.events.lines import LineFile, read_lines
from simpletuner.events.records import kind_of
from simpletuner.events.types import (
    CheckpointSaved,
    Event,
    LossEvaluated,
    RunFinished,
    RunStarted,
    StageFinished,
    Uploaded,
    VideoGenerated,
)

JOURNAL = "journal.jsonl"
# Rare events that a power cut must not take; a disk flush per step would cost more than the step.
_TO_DISK = (RunStarted, StageFinished, CheckpointSaved, LossEvaluated, VideoGenerated, Uploaded, RunFinished)


class JournalSink:
    """Writes every event of the run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._lines = LineFile(folder / JOURNAL)
        last = self._lines.last or {}
        self._start = int(last.get("start", 0)) + 1

    def receive(self, event: Event, sequence: int) -> None:
        record = {
            "sequence": sequence,
            "start": self._start,
            "time": utc_now(),
            "kind": kind_of(type(event)),
            **vars(event),
        }
        self._lines.append(record, to_disk=isinstance(event, _TO_DISK))

    def close(self) -> None:
        self._lines.close()


def read_journal(folder: Path, kinds: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Events of the run in `folder`, oldest first; readable while the run goes on.

    With `kinds` only those, without reading the many others.
    """
    marks = [f'"kind":"{kind}"'.encode() for kind in kinds]
    # A text may quote such a mark; what counts is the record itself.
    return (one for one in read_lines(folder / JOURNAL, marks) if not kinds or one.get("kind") in kinds)


def last_sequence(folder: Path) -> int:
    """Number of the newest event of the run in `folder`; 0 where nothing has happened yet.

    Raises:
        UserError: If the journal cannot be written (exit code 6).
    """
    lines = LineFile(folder / JOURNAL)
    lines.close()
    return int(lines.last["sequence"]) if lines.last and "sequence" in lines.last else 0


def utc_now() -> str:
    """The time as ISO 8601 in UTC with milliseconds, such as "2026-03-01T12:00:00.000Z"."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
