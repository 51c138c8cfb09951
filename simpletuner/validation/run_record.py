"""What a run folder tells about its run: journal, metrics, settings and media, joined.

Reads files only, so it works while the run goes on, after a crash, and on a copied folder. Knows
nothing of HTML; `report.py` shows what is found here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from simpletuner.core.errors import UserError
from simpletuner.events.run import CONFIG_FILE, VERSIONS_FILE
from simpletuner.events.sinks.journal import JOURNAL, read_journal
from simpletuner.events.sinks.metrics import read_metrics
from simpletuner.validation.names import VIDEO_FOLDER, poster_path
from simpletuner.validation.timeline import Span, find_spans, seconds_of

_Place = tuple[str, int, int, int]  # nickname, number, width, height


@dataclass(frozen=True)
class Clip:
    """One validation video that exists; paths are relative to the run folder.

    Attributes:
        step: Optimizer steps done; 0 for the base model.
        path, poster: The video and its still picture; the poster may be missing ("").
        is_still: Whether it is one frame.
        seed: Of its noise.
        measures: Name -> what was measured of it, see `maths/video_measures.py`.
    """

    step: int
    path: str
    poster: str
    is_still: bool
    seed: int = 0
    measures: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Sight:
    """All videos of one prompt at one size, from one seed."""

    nickname: str
    number: int  # of several videos of one prompt and size, from 1
    prompt: str
    width: int
    height: int
    base: Clip | None
    history: tuple[Clip, ...]  # with the trained weights, by step
    averaged: tuple[Clip, ...] = ()  # with their running average, by step

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def name(self) -> str:
        """What tells it from the others in file names: "cat+2_768x512"."""
        return f"{self.nickname}+{self.number}_{self.size}" if self.number > 1 else f"{self.nickname}_{self.size}"

    @property
    def title(self) -> str:
        """What people read: "cat 2"."""
        return f"{self.nickname} {self.number}" if self.number > 1 else self.nickname

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The base model's first, then those of the trained weights, of their average where only that is shown."""
        return (*([self.base] if self.base else []), *(self.history or self.averaged))

    @property
    def latest(self) -> Clip | None:
        """The newest video of the trained weights, of their average where only that was shown."""
        return (self.history or self.averaged or (None,))[-1]

    @property
    def latest_average(self) -> Clip | None:
        """The newest video of the average, where the trained weights are shown beside it."""
        return self.averaged[-1] if self.averaged and self.history else None


@dataclass(frozen=True)
class Evaluation:
    """One measured loss on clips that are never trained.

    Attributes:
        curve: Which clips and weights.
        step: Optimizer steps done.
        loss: Mean over clips and noise levels.
        decides: Whether these weights decide which step is best.
        levels: (noise level, mean loss there).
    """

    curve: str
    step: int
    loss: float
    decides: bool = True
    levels: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """The joined facts of one run.

    Attributes:
        folder: The run folder.
        outcome: "finished", "stopped", "failed", or "unfinished" when no end was recorded.
        outcome_detail: What was said about the end; may be empty.
        last_step: Last optimizer step that was told.
        starts: How often the run was started or resumed.
        wall_seconds: Time between first and last event, summed over the starts.
        story: (heading, lines) as told before step 1, the last start's.
        notices: (severity, text) of warnings and errors, each once.
        checkpoints: Steps of the checkpoints told, newest last.
        sights: Validation videos.
        metrics: Lines of `metrics.jsonl`.
        spans: What the run did from when to when, over all its starts.
        evaluations: Losses on clips that are never trained; those that decide which step is best come first.
        datasets: Entries of the data set file, as they were read.
        options: Option -> {"value", "origin"} of every option, by name.
        versions: Content of `versions.json`.
        hardware: What the run computed with, as the last start told it; empty where it did not.
        loads: (minutes since the first event, what was looked at) of every look at the machine; pauses between starts
            are taken out.
    """

    folder: Path
    outcome: str
    outcome_detail: str
    last_step: int
    starts: int
    wall_seconds: float
    story: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    notices: tuple[tuple[str, str], ...]
    checkpoints: tuple[int, ...]
    sights: tuple[Sight, ...]
    metrics: Sequence[Mapping[str, Any]]
    spans: Sequence[Span] = ()
    evaluations: Sequence[Evaluation] = ()
    datasets: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    loads: Sequence[tuple[float, Mapping[str, Any]]] = ()

    def option(self, name: str) -> Any:
        """Value of an option of the run, None where the run does not know it."""
        return self.options.get(name, {}).get("value")


def read_run(folder: Path) -> RunRecord:
    """Join what `folder` holds.

    Raises:
        UserError: If it is not the folder of a run.
    """
    events = list(read_journal(folder))
    if not events:
        raise _no_run(folder)
    starts = _starts(events)
    last = starts[-1]
    kept = [event for start in _since_fresh(starts) for event in start]
    metrics = list(read_metrics(folder))
    document = read_document(folder / CONFIG_FILE)
    end: dict[str, Any] = next((event for event in reversed(last) if event["kind"] == "run_finished"), {})
    told_steps = [int(e["step"]) for e in kept if e["kind"] in ("step_finished", "run_finished", "checkpoint_saved")]
    return RunRecord(
        folder=folder,
        outcome=end.get("outcome", "unfinished"),
        outcome_detail=end.get("detail", ""),
        last_step=int(end.get("step", told_steps[-1] if told_steps else 0)),
        starts=len(_since_fresh(starts)),
        wall_seconds=sum(_seconds_between(start[0], start[-1]) for start in _since_fresh(starts)),
        story=tuple((e["heading"], tuple(map(tuple, e["lines"]))) for e in last if e["kind"] == "story_told"),
        notices=tuple({(e["severity"], e["text"]): None for e in last if _is_alarming(e)}),
        checkpoints=tuple(sorted({int(e["step"]) for e in kept if e["kind"] == "checkpoint_saved"})),
        sights=_find_sights(folder, events, kept),
        metrics=metrics,
        spans=find_spans(_since_fresh(starts)),
        evaluations=_evaluations(kept),
        datasets=tuple(document.get("datasets", ())) + tuple(document.get("eval_datasets", ())),
        options=options_of(document),
        versions=read_document(folder / VERSIONS_FILE),
        hardware=next((event for event in last if event["kind"] == "hardware_found"), {}),
        loads=_loads(_since_fresh(starts)),
    )


def _loads(starts: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[float, Mapping[str, Any]]]:
    found: list[tuple[float, Mapping[str, Any]]] = []
    offset = 0.0
    for events in starts:
        begun = seconds_of(events[0])
        found += [
            ((offset + seconds_of(event) - begun) / 60, event)
            for event in events
            if event["kind"] == "hardware_sampled"
        ]
        offset += seconds_of(events[-1]) - begun
    return found


def read_sights(folder: Path) -> tuple[Sight, ...]:
    """The validation videos of the run in `folder` alone; much quicker than all of `read_run` after a million steps.

    Raises:
        UserError: If it is not the folder of a run.
    """
    events = list(read_journal(folder, kinds=("run_started", "video_generated")))
    if not events:
        raise _no_run(folder)
    return _find_sights(folder, events, [event for start in _since_fresh(_starts(events)) for event in start])


def _no_run(folder: Path) -> UserError:
    return UserError(
        f"'{folder}' is not a run folder", f"A run folder holds a {JOURNAL}", "Give the output_dir of a run"
    )


def _starts(events: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Events of each start of the program; one that failed while planning is passed over."""
    starts: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        starts.setdefault(int(event["start"]), []).append(event)
    begun = [start for start in starts.values() if _beginning(start)]
    return begun or [list(events)]


def _beginning(start: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The `run_started` of a start; planning and its notices come before it."""
    return next((event for event in start if event["kind"] == "run_started"), {})


def _since_fresh(starts: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The last start that did not resume, and what followed: one story."""
    for index in range(len(starts) - 1, 0, -1):
        if not _beginning(starts[index]).get("resumed_from"):
            return starts[index:]
    return starts


def _find_sights(folder: Path, events: Iterable[dict[str, Any]], kept: Sequence[dict[str, Any]]) -> tuple[Sight, ...]:
    groups: dict[_Place, dict[str, Any]] = {}
    for event in (e for e in kept if e["kind"] == "video_generated"):
        key = _place(event)
        group = groups.setdefault(key, {"prompt": "", "base": None, "adapter": {}, "ema": {}})
        group["prompt"] = event["prompt"]
        clip = _clip(folder, event)
        if clip is not None and event["weights"] != "base":
            group[event["weights"]][clip.step] = clip
    # The base model does not change with the run: its videos of an earlier start still hold.
    for event in (e for e in events if e["kind"] == "video_generated" and e["weights"] == "base"):
        key = _place(event)
        if key in groups and event["prompt"] == groups[key]["prompt"]:
            groups[key]["base"] = _clip(folder, event)
    return tuple(
        Sight(
            nickname,
            number,
            g["prompt"],
            width,
            height,
            base=g["base"],
            history=_by_step(g["adapter"]),
            averaged=_by_step(g["ema"]),
        )
        for (nickname, number, width, height), g in groups.items()
        if g["base"] is not None or g["adapter"] or g["ema"]
    )


def _by_step(clips: Mapping[int, Clip]) -> tuple[Clip, ...]:
    return tuple(clips[step] for step in sorted(clips))


def _place(event: Mapping[str, Any]) -> _Place:
    return (event["nickname"], int(event.get("number", 1)), event["width"], event["height"])


def _evaluations(events: Iterable[Mapping[str, Any]]) -> tuple[Evaluation, ...]:
    """Measurements of the newest yardstick, in the order of their steps; the last one where a step has two."""
    told = [event for event in events if event["kind"] == "loss_evaluated"]
    found = {
        (curve, bool(event.get("decides", True)), int(event["step"])): (float(loss), event)
        for event in told
        if event.get("yardstick") == told[-1].get("yardstick")
        for curve, loss in _curves(event).items()
        if loss is not None
    }
    return tuple(
        Evaluation(curve, step, loss, decides, _levels(event))
        # What decides comes first, so that whoever wants one curve takes the first one's.
        for (curve, decides, step), (loss, event) in sorted(found.items(), key=lambda one: (not one[0][1], *one[0]))
    )


def _curves(event: Mapping[str, Any]) -> dict[str, float | None]:
    suffix = (
        "" if event.get("decides", True) else ", trained weights" if event["weights"] == "adapter" else ", averaged"
    )
    series = event.get("losses") or {}
    return {f"{name}{suffix}": loss for name, loss in series.items()}


def _levels(event: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    """(noise level, mean loss over the series there); levels without a number are left out."""
    rows = [row for row in (event.get("by_level") or {}).values() if None not in row]
    means = [sum(values) / len(values) for values in zip(*rows, strict=False)]
    return tuple(zip((float(sigma) for sigma in event.get("sigmas") or ()), means, strict=False))


def _clip(folder: Path, event: Mapping[str, Any]) -> Clip | None:
    """The video of an event, found by its name, so that a moved run folder still shows it."""
    path = folder / VIDEO_FOLDER / Path(event["path"]).name
    if not path.is_file():
        return None
    still = path.suffix == ".png"
    poster = path if still else poster_path(path)
    return Clip(
        0 if event["weights"] == "base" else int(event["step"]),
        path.relative_to(folder).as_posix(),
        poster.relative_to(folder).as_posix() if poster.is_file() else "",
        still,
        int(event.get("seed") or 0),
        {name: float(value) for name, value in (event.get("measures") or {}).items() if value is not None},
    )


def _is_alarming(event: Mapping[str, Any]) -> bool:
    return event["kind"] == "noticed" and event["severity"] in ("warning", "error")


def _seconds_between(first: Mapping[str, Any], last: Mapping[str, Any]) -> float:
    moments = [datetime.fromisoformat(event["time"].replace("Z", "+00:00")) for event in (first, last)]
    return (moments[1] - moments[0]).total_seconds()


def options_of(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Option -> its value and origin, of a `resolved_config.json`."""
    sections = document.get("options", {})
    return {name: facts for options in sections.values() for name, facts in options.items()}


def read_document(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty when it is missing or was never finished."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
