"""The numbers of training, one JSON line per optimizer step, in `metrics.jsonl`.

The file always tells one straight story: when a run goes on from step N (or starts anew), the lines
of the steps it repeats are taken out first. The journal keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simpletuner.events.lines import LineFile, read_lines
from simpletuner.events.types import Event, StepFinished

METRICS = "metrics.jsonl"


class MetricsSink:
    """Writes every `StepFinished` of the run in `folder`; other events pass by."""

    def __init__(self, folder: Path) -> None:
        self._lines = LineFile(folder / METRICS)
        last = self._lines.last
        self._last_step = int(last["step"]) if last and "step" in last else 0

    def receive(self, event: Event, sequence: int) -> None:
        if not isinstance(event, StepFinished):
            return
        if event.step <= self._last_step:
            self._lines.keep_only(lambda record: int(record.get("step", 0)) < event.step)
        self._lines.append(vars(event))
        self._last_step = event.step

    def close(self) -> None:
        self._lines.close()


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """Lines of the run in `folder`, in the order of their steps."""
    return read_lines(folder / METRICS)
