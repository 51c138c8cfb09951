"""Measurements of the evaluation loss, one JSON line each, in `evaluation.jsonl`.

Like `metrics.jsonl` the file tells one straight story: what a run repeats after it went back to an earlier step is
taken out first. The run itself reads it when it goes on: which step was best, how long it has not improved.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from simpletuner.events.lines import LineFile, read_lines
from simpletuner.events.sinks.scalars import resumed_step
from simpletuner.events.types import Event, LossEvaluated, RolledBack, RunStarted

EVALUATIONS: Final = "evaluation.jsonl"


class EvaluationsSink:
    """Writes every `LossEvaluated` of the run in `folder`; other events pass by."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVALUATIONS
        # A run that measures nothing leaves no file.
        self._lines: LineFile | None = LineFile(self._path) if self._path.exists() else None
        self._last_step = -1

    def receive(self, event: Event, sequence: int) -> None:
        if isinstance(event, RunStarted):
            self._forget_from(resumed_step(event) + 1 if event.resumed_from else 0)
        elif isinstance(event, RolledBack):
            self._forget_from(event.to_step + 1)
        elif isinstance(event, LossEvaluated):
            if event.step < self._last_step:
                self._forget_from(event.step)
            if self._lines is None:
                self._lines = LineFile(self._path)
            self._lines.append(vars(event), to_disk=True)
            self._last_step = event.step

    def _forget_from(self, step: int) -> None:
        if self._lines is not None:
            self._lines.keep_only(lambda record: int(record.get("step", 0)) < step)

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()


def read_evaluations(folder: Path) -> Iterator[dict[str, Any]]:
    """Lines of the run in `folder`, in the order of their steps; the later of two of one step and weights."""
    found = {(int(line["step"]), str(line["weights"])): line for line in read_lines(folder / EVALUATIONS)}
    yield from (found[key] for key in sorted(found, key=lambda key: key[0]))
