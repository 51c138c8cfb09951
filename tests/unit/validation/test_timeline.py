"""Where the time went: spans cover the whole, sums are exact, short work is seen in its place."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from simpletuner.validation.timeline import OTHER, TRAINING, Span, find_spans, simplified, sum_spans

BEGIN = datetime(2026, 3, 1, tzinfo=timezone.utc)


def record(second: float, kind: str, **fields: Any) -> dict[str, Any]:
    time = (BEGIN + timedelta(seconds=second)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": time, "kind": kind, **fields}


def start() -> list[dict[str, Any]]:
    return [
        record(0, "run_started"),
        record(10, "stage_finished", stage="latents", seconds=8.0),
        record(12, "stage_started", stage="train", label="Training"),
        record(15, "step_finished", seconds=3.0),
        record(18, "step_finished", seconds=3.0),
        record(19, "checkpoint_saved", seconds=1.0),
        record(29, "stage_finished", stage="validation", seconds=10.0),
        record(32, "step_finished", seconds=3.0),
        record(32, "stage_finished", stage="train", seconds=20.0),
        record(33, "run_finished"),
    ]


def test_spans_follow_the_journal_without_gaps_or_overlaps() -> None:
    spans = find_spans([start()])
    assert [(one.what, one.begin, one.end) for one in spans] == [
        (OTHER, 0, 2), ("encoding clips", 2, 10), (OTHER, 10, 12), (TRAINING, 12, 18), ("checkpoints", 18, 19),
        ("validation videos", 19, 29), (TRAINING, 29, 32), (OTHER, 32, 33),
    ]  # fmt: skip


def test_sums_are_exact_and_in_the_order_of_a_run() -> None:
    sums = sum_spans(find_spans([start()]))
    assert sums == [("encoding clips", 8), (TRAINING, 9), ("validation videos", 10), ("checkpoints", 1), (OTHER, 5)]
    assert sum(seconds for _, seconds in sums) == 33


def test_the_pause_between_two_starts_is_left_out() -> None:
    later = [{**one, "time": one["time"].replace("2026-03-01", "2026-03-05")} for one in start()]
    spans = find_spans([start(), later])
    assert spans[-1].end == 66
    assert dict(sum_spans(spans))[TRAINING] == 18


def test_work_of_a_kind_that_is_not_known_keeps_its_own_name() -> None:
    records = [
        record(0, "run_started"),
        record(0, "stage_started", stage="washing", label="Washing clips"),
        record(5, "stage_finished", stage="washing", seconds=5.0),
    ]
    assert sum_spans(find_spans([records])) == [("washing clips", 5)]


def test_a_step_that_claims_more_than_its_time_takes_nothing_from_others() -> None:
    records = [
        record(0, "run_started"),
        record(10, "stage_finished", stage="validation", seconds=10.0),
        record(11, "step_finished", seconds=6.0),
    ]
    assert [(one.what, one.seconds) for one in find_spans([records])] == [("validation videos", 10), (TRAINING, 1)]


def test_what_is_drawn_keeps_the_shares() -> None:
    steps = [Span(what, begin, begin + length) for number in range(5000) for what, begin, length in
             ((TRAINING, number, 0.99), (OTHER, number + 0.99, 0.01))]  # fmt: skip
    drawn = simplified([*steps, Span("validation videos", 5000, 10_000)])
    assert [one.what for one in drawn] == [TRAINING, "validation videos"]
    assert drawn[0].end == pytest.approx(5000, abs=20)
    assert simplified([]) == []


def test_nothing_is_told_of_nothing() -> None:
    assert find_spans([[]]) == []
