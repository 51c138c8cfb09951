"""Which reading of the schedule applies is told, and so is a warm-up nobody can want."""

from __future__ import annotations

import pytest

from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.core.errors import UserError
from simpletuner.maths.schedules import RatePlan
from simpletuner.training.learning_rate import LearningRate


def make(total_steps: int = 100, **settings: object) -> LearningRate:
    return LearningRate.from_section(ScheduleSection(**{"learning_rate": 1e-4, "lr_end": 0.0, **settings}), total_steps)


def test_the_guides_cosine_says_that_it_has_no_warmup() -> None:
    rate = make(400_000, lr_scheduler="cosine", lr_warmup_steps=400_000)
    assert "without warm-up" in rate.describe()
    assert "0.0001 at the first step" in rate.describe()
    assert rate.warning() == ""


def test_an_ordinary_warmup_is_named() -> None:
    assert "after 10 warm-up steps" in make(lr_scheduler="cosine", lr_warmup_steps=10).describe()
    assert "warm-up" not in make(lr_scheduler="linear").describe()


def test_a_run_that_never_leaves_its_warmup_is_warned_about() -> None:
    assert "never reaches 0.0001" in make(lr_scheduler="linear", lr_warmup_steps=100).warning()
    assert make(lr_scheduler="linear", lr_warmup_steps=99).warning() == ""


def test_a_warmup_without_effect_is_warned_about() -> None:
    assert "has no effect" in make(lr_scheduler="constant", lr_warmup_steps=5).warning()


def test_an_unknown_course_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'cosine'"):
        LearningRate("cosin", RatePlan(base=1.0, total_steps=1))


@pytest.mark.parametrize(
    ("settings", "factor"), [({}, 1), ({"lr_scale": True}, 12), ({"lr_scale_sqrt": True}, 12**0.5)]
)
def test_scaling_by_the_clips_of_a_step(settings: dict[str, bool], factor: float) -> None:
    schedule = ScheduleSection(learning_rate=1e-4, train_batch_size=4, gradient_accumulation_steps=3, **settings)
    assert LearningRate.from_section(schedule, 10)(5) == pytest.approx(1e-4 * factor)
