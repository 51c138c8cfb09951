"""The terminal: the story before step 1, progress, warnings, and a summary at the end.

On a terminal every stage is a bar with rate and time left; elsewhere (a file, a scheduler's log) a
stage says a line per tenth of the way, at most one a second, and at least one a minute. The train
bar is moved by `StepFinished` itself. Receiving a step only stores numbers; drawing happens on the
display's own thread four times a second.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from simpletuner.events.sinks.bars import TRAIN, Bars, Pace
from simpletuner.events.types import (
    CheckpointSaved,
    Event,
    LossEvaluated,
    MemoryMeasured,
    Noticed,
    PaceMeasured,
    PreviewGenerated,
    RolledBack,
    RunFinished,
    RunStarted,
    StageAdvanced,
    StageFinished,
    StageStarted,
    StepFinished,
    StepSkipped,
    StoryTold,
    Uploaded,
    VideoGenerated,
)
from simpletuner.events.wording import (
    told_duration,
    told_memory,
    told_rate,
    told_rollback,
    told_size,
    told_skip,
)

_LINE_PAUSE_SECONDS = 1.0
_LINE_INTERVAL_SECONDS = 60.0
_LOSS_WINDOW = 20  # steps in the means of the summary
_SEVERITY_STYLES = {"note": "dim", "warning": "yellow", "error": "bold red"}
_TOLD_BY_THEIR_RESULT = ("evaluation",)  # a loss or a table follows, which tells more than the end of the stage
_OUTCOMES = {
    "finished": ("Finished", "bold green"),
    "stopped": ("Stopped", "bold yellow"),
    "failed": ("Failed", "bold red"),
}


class _Display(Protocol):
    """How stages are shown."""

    def start(self, event: StageStarted) -> None: ...

    def advance(self, stage: str, done: int, detail: str) -> None: ...

    def pace(self, event: PaceMeasured) -> None: ...

    def finish(self, stage: str) -> None: ...

    def close(self) -> None: ...


class ConsoleSink:
    """Tells a person what happens."""

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self._folder = folder
        self._console = console or Console(highlight=False)
        self._display: _Display = Bars(self._console) if self._console.is_terminal else _Lines(self._say)
        self._labels: dict[str, StageStarted] = {}
        self._summary = _Summary()

    def receive(self, event: Event, sequence: int) -> None:
        if isinstance(event, StepFinished):
            self._summary.take(event)
            self._display.advance(TRAIN, event.step, _train_detail(event))
        elif isinstance(event, StepSkipped):
            self._display.advance(TRAIN, event.step, "skipped")
            self._warn(told_skip(event))
        elif isinstance(event, StageAdvanced):
            self._display.advance(event.stage, event.done, event.detail)
        elif isinstance(event, PaceMeasured):
            self._display.pace(event)
        elif isinstance(event, StageStarted):
            self._labels[event.stage] = event
            self._display.start(event)
        elif isinstance(event, StageFinished):
            self._finish_stage(event)
        elif isinstance(event, StoryTold):
            self._tell_story(event)
        else:
            self._tell_moment(event)

    def close(self) -> None:
        self._display.close()

    def _finish_stage(self, event: StageFinished) -> None:
        self._display.finish(event.stage)
        if event.stage in _TOLD_BY_THEIR_RESULT:
            return
        started = self._labels.get(event.stage)
        label, unit = (started.label, started.unit) if started else (event.stage, "items")
        told = f"{label}: {event.done} {unit} in {told_duration(event.seconds)}"
        self._say(f"{told} ({event.summary})" if event.summary else told, "green")

    def _tell_story(self, event: StoryTold) -> None:
        self._say("")
        self._say(event.heading, "bold")
        self._say_pairs(event.lines)

    def _tell_moment(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._say(f"Run '{event.run_name}' in {event.output_dir}", "bold")
            if event.resumed_from:
                self._say(f"Going on from {event.resumed_from}")
        elif isinstance(event, Noticed):
            self._summary.warnings += event.severity != "note"
            self._say(f"{event.severity}: {event.text}", _SEVERITY_STYLES[event.severity])
        elif isinstance(event, MemoryMeasured):
            self._say(told_memory(event))
        elif isinstance(event, RolledBack):
            self._warn(told_rollback(event))
        elif isinstance(event, CheckpointSaved):
            self._summary.checkpoint = event.path
            kind = "Safety checkpoint" if event.is_rolling else "Checkpoint"
            self._say(f"{kind} of step {event.step}: {event.path} ({told_size(event.size_bytes)})")
        elif isinstance(event, LossEvaluated):
            if event.decides:
                self._summary.evaluation = f"{event.loss:.4f} (best {event.best_loss:.4f} at step {event.best_step})"
            self._say(_told_evaluation(event))
        elif isinstance(event, VideoGenerated):
            self._summary.videos += 1
            self._say(f"{_told_video(event)}: {event.path} ({told_duration(event.seconds)})")
        elif isinstance(event, PreviewGenerated):
            self._say(f"Preview (step {event.inference_step} of {event.inference_steps}): {event.path}", "dim")
        elif isinstance(event, Uploaded):
            self._say(f"Uploaded {event.what} to {event.address} ({told_duration(event.seconds)})")
        elif isinstance(event, RunFinished):
            self._display.close()
            word, style = _OUTCOMES[event.outcome]
            self._say("")
            where = f"after step {event.step}" if event.step else "before the first step"
            self._say(f"{word} {where}, {told_duration(self._summary.seconds)} in this start", style)
            # Why a run failed is told by the command line, which prints the error itself.
            told = event.detail.splitlines() if event.outcome != "failed" else []
            pairs = [tuple(line.split("  ", 1)) for line in told]
            places = tuple((pair[0], pair[1].strip()) for pair in pairs if len(pair) == 2)
            self._say_pairs((*self._summary.lines(), *places))
            for pair in pairs:
                if len(pair) == 1:
                    self._say(f"  {pair[0]}")

    def _warn(self, text: str) -> None:
        self._summary.warnings += 1
        self._say(f"warning: {text}", _SEVERITY_STYLES["warning"])

    def _say_pairs(self, pairs: tuple[tuple[str, str], ...]) -> None:
        width = max((cell_len(label) for label, _ in pairs), default=0)
        for label, value in pairs:
            line = Text("  ")
            line.append(label + " " * (width - cell_len(label) + 2), "dim")
            line.append(value)
            self._console.print(line, soft_wrap=True)

    def _say(self, text: str, style: str = "") -> None:
        # A Text is taken literally: captions and paths may contain [brackets].
        self._console.print(Text(text, style), soft_wrap=True)


class _Summary:
    """What the last lines of a run report."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=_LOSS_WINDOW)
        self._steps = 0
        self._peak_bytes = 0
        self.checkpoint = ""
        self.evaluation = ""
        self.videos = 0
        self.warnings = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def take(self, event: StepFinished) -> None:
        self._steps += 1
        self._peak_bytes = max(self._peak_bytes, event.memory_bytes)
        self._last.append(event.loss)
        if len(self._first) < _LOSS_WINDOW:
            self._first.append(event.loss)

    def lines(self) -> tuple[tuple[str, str], ...]:
        told = []
        if self._steps:
            # A short run is halved, so that no step counts on both sides.
            span = max(1, min(_LOSS_WINDOW, self._steps // 2))
            first, last = sum(self._first[:span]) / span, sum(list(self._last)[-span:]) / span
            noun = f"means of the first and last {span} steps" if span > 1 else "first and last step"
            told.append(("loss", f"{first:.4f} -> {last:.4f} ({noun})"))
        if self.evaluation:
            told.append(("loss on clips set apart", self.evaluation))
        if self._peak_bytes:
            told.append(("peak memory", told_size(self._peak_bytes)))
        if self.checkpoint:
            told.append(("last checkpoint", self.checkpoint))
        if self.videos:
            told.append(("videos", str(self.videos)))
        if self.warnings:
            told.append(("warnings", f"{self.warnings}, see above"))
        return tuple(told)


class _Lines:
    """A few plain lines per stage where there is no terminal."""

    def __init__(self, say: _Say) -> None:
        self._say = say
        self._stages: dict[str, _LineState] = {}

    def start(self, event: StageStarted) -> None:
        self._stages[event.stage] = _LineState(event)

    def advance(self, stage: str, done: int, detail: str) -> None:
        state = self._stages.get(stage)
        if state is not None and state.is_worth_a_line(done):
            self._say(state.told(done, detail))

    def pace(self, event: PaceMeasured) -> None:
        if (state := self._stages.get(TRAIN)) is not None:
            state.pace = Pace(event, time.monotonic())

    def finish(self, stage: str) -> None:
        self._stages.pop(stage, None)

    def close(self) -> None:
        self._stages = {}


class _Say(Protocol):
    def __call__(self, text: str, style: str = "") -> None: ...


class _LineState:
    """When the last line of a stage was said, and how fast it goes."""

    def __init__(self, event: StageStarted) -> None:
        self._event = event
        self.pace: Pace | None = None
        self._started = self._last_line = time.monotonic()
        self._tenth = self._tenth_of(event.done)

    def is_worth_a_line(self, done: int) -> bool:
        now = time.monotonic()
        quiet = now - self._last_line
        tenth = self._tenth_of(done)
        if quiet < _LINE_PAUSE_SECONDS or (tenth == self._tenth and quiet < _LINE_INTERVAL_SECONDS):
            return False
        self._last_line, self._tenth = now, tenth
        return True

    def told(self, done: int, detail: str) -> str:
        event = self._event
        if self.pace is not None:
            parts = [f"{event.label}: {done}/{event.total} {event.unit}", self.pace.rates, self.pace.left, detail]
            return ", ".join(part for part in parts if part)
        pace = (done - event.done) / max(time.monotonic() - self._started, 1e-9)
        parts = [f"{event.label}: {done}/{event.total} {event.unit}", told_rate(pace, event.unit)]
        if pace > 0:
            parts.append(f"{told_duration(max(event.total - done, 0) / pace)} left")
        return ", ".join(part for part in [*parts, detail] if part)

    def _tenth_of(self, done: int) -> int:
        return 10 * done // max(self._event.total, 1)


def _told_video(event: VideoGenerated) -> str:
    if event.weights == "base":
        return "Video (base model)"
    # Step 0 is that of weights whose file does not tell it.
    told = [f"step {event.step}"] if event.step else []
    told += ["averaged weights"] if event.weights == "ema" else []
    return f"Video ({', '.join(told)})" if told else "Video"


def _told_evaluation(event: LossEvaluated) -> str:
    which = ", averaged weights" if event.weights == "ema" else ""
    sets = ", ".join(f"{name} {value:.4f}" for name, value in event.losses.items()) if len(event.losses) > 1 else ""
    best = "the lowest so far" if event.is_best else f"lowest: {event.best_loss:.4f} at step {event.best_step}"
    best = best if event.decides else ""
    told = f"Loss on clips set apart (step {event.step}{which}): {event.loss:.4f}"
    return f"{told} ({'; '.join(part for part in (sets, best, told_duration(event.seconds)) if part)})"


def _train_detail(event: StepFinished) -> str:
    memory = f", {told_size(event.memory_bytes)}" if event.memory_bytes else ""
    return f"loss {event.loss:.4f}, lr {event.learning_rate:.1e}{memory}"
