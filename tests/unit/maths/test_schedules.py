"""Learning-rate courses against tables, both readings of the cosine included."""

from __future__ import annotations

import pytest

from simpletuner.config.catalogs.schedules import SCHEDULES
from simpletuner.maths.schedules import RatePlan

GUIDE = RatePlan(base=5e-5, total_steps=400_000, warmup_steps=400_000, end=4e-7)
PLAIN = RatePlan(base=1.0, total_steps=100, warmup_steps=10, end=0.1, power=2.0)


def rate(name: str, step: int, plan: RatePlan) -> float:
    return float(SCHEDULES.load(name)(step, plan))


@pytest.mark.parametrize(("step", "expected"), [(0, 5e-5), (200_000, (5e-5 + 4e-7) / 2), (400_000, 4e-7)])
def test_cosine_of_the_guide_is_one_decay_over_the_run(step: int, expected: float) -> None:
    assert rate("cosine", step, GUIDE) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("constant", {0: 1.0, 5: 1.0, 99: 1.0}),
        ("constant_with_warmup", {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
        ("linear", {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1, 150: 0.1}),
        ("polynomial", {0: 0.0, 10: 1.0, 55: 0.1 + 0.9 * 0.25, 100: 0.1, 150: 0.1}),
        ("cosine", {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1, 150: 0.1}),
        ("cosine_with_restarts", {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1, 150: 0.1}),
        ("sine", {0: 0.0, 5: 0.275, 10: 0.55, 55: 1.0, 100: 0.55, 150: 0.55}),
    ],
)
def test_courses(name: str, table: dict[int, float]) -> None:
    assert {step: rate(name, step, PLAIN) for step in table} == pytest.approx(table)


@pytest.mark.parametrize("warmup", [100, 5_000])
def test_cosine_never_rises_when_the_warmup_covers_the_run(warmup: int) -> None:
    plan = RatePlan(base=1.0, total_steps=100, warmup_steps=warmup)
    rates = [rate("cosine", step, plan) for step in range(120)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0
    assert rates[100] == rates[119] == 0.0


@pytest.mark.parametrize("name", ["linear", "polynomial", "cosine"])
def test_decaying_courses_without_warmup_begin_at_the_base_rate(name: str) -> None:
    plan = RatePlan(base=2e-4, total_steps=50)
    assert rate(name, 0, plan) == 2e-4
    assert rate(name, 50, plan) == pytest.approx(0.0, abs=1e-18)


def test_restarts_begin_anew_and_end_low() -> None:
    plan = RatePlan(base=1.0, total_steps=90, end=0.1, cycles=3)
    assert [rate("cosine_with_restarts", step, plan) for step in (0, 15, 30, 45, 60, 75, 90)] == pytest.approx(
        [1.0, 0.55, 1.0, 0.55, 1.0, 0.55, 0.1]
    )
    assert rate("cosine_with_restarts", 29, plan) < 0.11


def test_sine_over_the_whole_run_has_no_warm_up() -> None:
    plan = RatePlan(base=1.0, total_steps=100, warmup_steps=100, end=0.2)
    assert [rate("sine", step, plan) for step in (0, 50, 100)] == pytest.approx([0.6, 1.0, 0.6])


def test_the_catalog_covers_the_option() -> None:
    from typing import get_args

    from simpletuner.config.sections.schedule import ScheduleSection

    assert set(SCHEDULES) == set(get_args(ScheduleSection.model_fields["lr_scheduler"].annotation))
