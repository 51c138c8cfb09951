"""The sentences at the top of the report say what the numbers say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from simpletuner.validation.run_record import Evaluation, RunRecord
from simpletuner.validation.timeline import TRAINING, Span
from simpletuner.validation.verdict import tell_verdict


def record(losses: list[float], **more: Any) -> RunRecord:
    metrics = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    return RunRecord(Path(), "finished", "", len(losses), 1, 1.0, (), (), (), (), metrics, **more)


def held_out(*points: tuple[int, float]) -> tuple[Evaluation, ...]:
    return tuple(Evaluation("held-out", step, loss) for step, loss in points)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([1 - step / 400 for step in range(200)], "still falling"),
        ([0.5 + 0.5 * math.exp(-step / 20) for step in range(200)], "hardly moved in the last quarter"),
        ([abs(step - 120) / 200 + 0.5 for step in range(200)], "rose again"),
        ([0.5 + step / 400 for step in range(200)], "The loss rose by"),
        ([0.5] * 200, "stayed where it was (0.5)"),
    ],
)
def test_the_course_of_the_loss(losses: list[float], told: str) -> None:
    (sentence,) = tell_verdict(record(losses))
    assert told in sentence


def test_too_little_is_not_judged() -> None:
    assert tell_verdict(record([1.0, 0.5])) == []
    assert tell_verdict(record([math.nan] * 50)) == []


def test_learning_by_heart_is_named_with_its_step() -> None:
    worse = record([], evaluations=held_out((10, 0.5), (20, 0.4), (30, 0.45)))
    assert tell_verdict(worse) == [
        "On clips that are not trained it was lowest at step 20 (0.4) and is 0.45 now: what came after that step was "
        "learnt by heart."
    ]
    better = record([], evaluations=held_out((10, 0.5), (20, 0.4)))
    assert tell_verdict(better) == ["On clips that are not trained it went from 0.5 to 0.4."]


def test_much_time_for_videos_is_told() -> None:
    spans = (Span(TRAINING, 0, 50), Span("validation videos", 50, 100))
    assert tell_verdict(record([], spans=spans)) == ["Validation videos took 50% of the time."]
