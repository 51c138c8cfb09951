"""Progress on a terminal: one line per stage that fits the terminal, whatever its width.

What matters least gives way first: remarks behind the figures, the bar, the rate. A line that wrapped would be
redrawn wrongly and push the story off the screen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from simpletuner.events.types import PaceMeasured, StageStarted
from simpletuner.events.wording import told_duration, told_pace, told_rate

TRAIN = "train"
TRAINING = "training"  # as `PaceMeasured` calls the steps themselves
_WORTH_TELLING = 0.01  # share of what is left
_REFRESHES_PER_SECOND = 4  # each costs about 2 ms of CPU
_BAR_CELLS, _SHORT_BAR_CELLS = 24, 10


@dataclass(frozen=True)
class Pace:
    """What was told of the pace of training, and when; what is left shrinks by itself."""

    event: PaceMeasured
    at: float

    @property
    def rates(self) -> str:
        return told_pace(self.event.steps_per_second, self.event.clips_per_second, self.event.tokens_per_second)

    @property
    def seconds_left(self) -> float:
        return max(self.event.seconds_left - (time.monotonic() - self.at), 0.0)

    @property
    def left(self) -> str:
        """Such as "1 h 20 min left (validation 12 min 05 s)"; what is forecast is marked."""
        told, seconds = self.event.seconds_left, self.seconds_left
        # All of it shrinks alike, so that no part is ever told to be longer than the whole.
        shrunk = seconds / told if told > 0 else 0.0
        beside = [
            f"{name} {'about ' if name in self.event.forecast else ''}{told_duration(part * shrunk)}"
            for name, part in self.event.left.items()
            if name != TRAINING and part >= _WORTH_TELLING * told > 0
        ]
        more = f" ({', '.join(beside)})" if beside and seconds else ""
        return f"{told_duration(seconds)} left{more}"


@dataclass(frozen=True)
class _Line:
    """One line of progress in its parts; an empty part is not shown."""

    label: str
    bar_cells: int
    count: str
    rate: str
    left: str
    detail: str

    @property
    def cells(self) -> int:
        texts = [text for text in (self.label, self.count, self.rate, self.left, self.detail) if text]
        return sum(cell_len(text) for text in texts) + self.bar_cells + len(texts) - (not self.bar_cells)

    def shorter(self) -> Iterator[_Line]:
        """The line as it is, then ever shorter ones."""
        line = self
        yield line
        for change in (
            {"left": self.left.partition(" (")[0]},
            {"rate": self.rate.partition(", ")[0]},
            {"bar_cells": _SHORT_BAR_CELLS},
            {"detail": self.detail.partition(", ")[0]},
            {"rate": ""},
            {"bar_cells": 0},
            {"detail": ""},
            {"left": ""},
        ):
            line = replace(line, **change)  # type: ignore[arg-type]
            yield line

    def fitting(self, cells: int) -> _Line:
        """The longest of them that takes at most so many cells; the shortest if none does."""
        lines = list(self.shorter())
        return next((line for line in lines if line.cells <= cells), lines[-1])


class _LineColumn(ProgressColumn):
    """The whole line of a stage."""

    def __init__(self, console: Console) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self._console = console

    def render(self, task: Task) -> Text:
        pace: Pace | None = task.fields.get("pace")
        unit, total = str(task.fields["unit"]), int(task.total or 0)
        line = _Line(
            label=task.description,
            bar_cells=_BAR_CELLS,
            count=f"{task.completed:.0f}/{total} {unit}",
            rate=pace.rates if pace else told_rate(task.speed or 0.0, unit),
            left=pace.left if pace else _told_left(task),
            detail=str(task.fields["detail"]),
        ).fitting(self._console.width)
        share = task.completed / total if total else 1.0
        text = Text(line.label, no_wrap=True, overflow="ellipsis")
        for part, style in (
            (line.count, ""),
            (line.rate, "cyan"),
            (line.left, "progress.remaining"),
            (line.detail, "dim"),
        ):
            if part is line.count and line.bar_cells:
                text.append(" ").append_text(self._bar(line.bar_cells, share))
            if part:
                text.append(" ").append(part, style)
        return text

    def _bar(self, cells: int, share: float) -> Text:
        done = min(int(cells * share), cells)
        full, rest = ("=", ".") if self._console.options.ascii_only else ("━", "━")
        return Text(full * done, "bar.complete").append(rest * (cells - done), "bar.back")


def _told_left(task: Task) -> str:
    seconds = task.time_remaining
    return "" if seconds is None or task.finished else f"{told_duration(seconds)} left"


class Bars:
    """Live bars on a terminal; the drawing thread lives only while a stage is under way."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            _LineColumn(console), console=console, transient=True, refresh_per_second=_REFRESHES_PER_SECOND
        )
        self._tasks: dict[str, TaskID] = {}

    def start(self, event: StageStarted) -> None:
        self.finish(event.stage)
        if not self._tasks:
            self._progress.start()
        self._tasks[event.stage] = self._progress.add_task(
            event.label, total=event.total, completed=event.done, unit=event.unit, detail=""
        )

    def advance(self, stage: str, done: int, detail: str) -> None:
        if stage in self._tasks:
            self._progress.update(self._tasks[stage], completed=done, detail=detail)

    def pace(self, event: PaceMeasured) -> None:
        if TRAIN in self._tasks:
            self._progress.update(self._tasks[TRAIN], pace=Pace(event, time.monotonic()))

    def finish(self, stage: str) -> None:
        if stage in self._tasks:
            self._progress.remove_task(self._tasks.pop(stage))
            if not self._tasks:
                self._progress.stop()

    def close(self) -> None:
        for stage in list(self._tasks):
            self.finish(stage)
