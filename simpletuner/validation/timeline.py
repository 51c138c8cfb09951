"""Where the hours of a run went, from its journal: what it did from when to when, and how much of each.

Pure: from the records of the journal to spans and sums. Time between two starts does not count; time in which the
journal names nothing is told as what it is: loading models, planning, waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

TRAINING, LOADING, OTHER = "training steps", "loading the model", "loading encoders and everything else"
# What a stage is called; a stage of another name is called as its own label says.
_STAGES = {
    "probe": "reading clip headers",
    "prompts": "encoding captions",
    "latents": "encoding clips",
    "validation": "validation videos",
    "evaluation": "evaluation",
}
# What a phase is called; the others lie around stages that are told themselves.
_PHASES = {"init_load_base_model": LOADING, "init_prepare_models": LOADING, "init_resume_checkpoint": LOADING}
ORDER = ("reading clip headers", "encoding captions", "encoding clips", LOADING, TRAINING, "validation videos",
         "evaluation", "checkpoints", OTHER)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """One piece of work.

    Attributes:
        what: What was done, one of `ORDER` or the label of a stage.
        begin, end: Seconds since the run's first event, pauses between starts taken out.
    """

    what: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def find_spans(starts: Sequence[Sequence[Mapping[str, Any]]]) -> list[Span]:
    """Spans without gaps or overlaps, in order, over all starts.

    Args:
        starts: Records of the journal, of each start.
    """
    spans: list[Span] = []
    offset = 0.0
    for records in starts:
        if not records:
            continue
        first = seconds_of(records[0])
        length = seconds_of(records[-1]) - first
        works = _works(records, first)
        spans += [Span(one.what, one.begin + offset, one.end + offset) for one in _without_overlaps(works, length)]
        offset += length
    return _merged(spans)


def sum_spans(spans: Iterable[Span]) -> list[tuple[str, float]]:
    """(what, seconds) of each kind of work, in the order in which a run does them."""
    sums: dict[str, float] = {}
    for span in spans:
        sums[span.what] = sums.get(span.what, 0.0) + span.seconds
    known = [what for what in ORDER if what in sums]
    others = [what for what in sums if what not in ORDER]
    return [
        (what, sums[what]) for what in [*(w for w in known if w != OTHER), *others, *([OTHER] if OTHER in sums else [])]
    ]


def simplified(spans: Sequence[Span], cells: int = 600) -> list[Span]:
    """The spans as they can be drawn: of each of `cells` equal pieces of the time, what filled most of it."""
    total = spans[-1].end if spans else 0.0
    if total <= 0:
        return []
    width = total / cells
    filled: list[dict[str, float]] = [{} for _ in range(cells)]
    for span in spans:
        for cell in range(int(span.begin / width), min(int(span.end / width) + 1, cells)):
            part = min(span.end, (cell + 1) * width) - max(span.begin, cell * width)
            filled[cell][span.what] = filled[cell].get(span.what, 0.0) + part
    return _merged(
        Span(max(shares, key=lambda what: shares[what]), cell * width, (cell + 1) * width)
        for cell, shares in enumerate(filled)
    )


def seconds_of(record: Mapping[str, Any]) -> float:
    """When a record was written, in seconds of an arbitrary clock."""
    return datetime.fromisoformat(str(record["time"]).replace("Z", "+00:00")).timestamp()


def _works(records: Iterable[Mapping[str, Any]], first: float) -> list[Span]:
    """Everything whose duration the journal tells; short work inside longer work comes after it."""
    works, labels = [], dict(_STAGES)
    for record in records:
        kind, end = record["kind"], seconds_of(record) - first
        if kind == "stage_started":
            labels.setdefault(str(record["stage"]), str(record["label"]).lower())
        what = {
            "step_finished": TRAINING,
            "checkpoint_saved": "checkpoints",
            "phase_ended": _PHASES.get(str(record.get("phase"))),
            "stage_finished": labels.get(str(record.get("stage")), str(record.get("stage"))),
        }.get(kind)
        # The stage around the steps is told by its parts.
        if what is None or record.get("stage") == "train":
            continue
        # A checkpoint is written beside training, which waits only for a part of it.
        seconds = record.get("stalled_seconds", record.get("seconds")) or 0
        works.append(Span(what, max(end - float(seconds), 0.0), end))
    return works


def _without_overlaps(works: Sequence[Span], length: float) -> list[Span]:
    """The works as a row without overlaps over [0, length]; what nothing covers is `OTHER`.

    A step's own time may reach into work before it, since the next step begins while the last one is read.
    """
    row: list[Span] = []
    now = 0.0
    for work in sorted(works, key=lambda one: (one.end, one.begin)):
        begin, end = max(work.begin, now), min(work.end, length)
        if end <= begin:
            continue
        if begin > now:
            row.append(Span(OTHER, now, begin))
        row.append(Span(work.what, begin, end))
        now = end
    if length > now:
        row.append(Span(OTHER, now, length))
    return row


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Neighbours of one kind as one."""
    row: list[Span] = []
    for span in spans:
        if row and row[-1].what == span.what:
            row[-1] = Span(span.what, row[-1].begin, span.end)
        else:
            row.append(span)
    return row
