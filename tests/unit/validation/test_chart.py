"""Charts: numbers land where they belong, gaps stay gaps, long series stay small."""

from __future__ import annotations

import math

import pytest

from simpletuner.validation.chart import Series, draw_chart, nice_ticks, thinned, told_number


def test_points_lie_between_the_axes_in_their_order() -> None:
    chart = draw_chart([Series("loss", [(0, 3.0), (10, 1.0), (20, 2.0)])], label="Loss")
    assert chart is not None
    ((_, text),) = chart.lines
    places = [tuple(map(float, pair.split(","))) for pair in text.split()]
    assert [x for x, _ in places] == [chart.left, pytest.approx((chart.left + chart.right) / 2, abs=0.1), chart.right]
    heights = [y for _, y in places]
    assert chart.top < heights[0] < heights[2] < heights[1] < chart.bottom
    assert chart.legend == ()
    assert chart.numbers["lines"] == [{"name": "loss", "points": [[0, 3.0], [10, 1.0], [20, 2.0]]}]


def test_the_levels_are_where_their_numbers_are() -> None:
    chart = draw_chart([Series("a", [(0, 0.0), (1, 1.0)])], label="a", from_zero=True)
    assert chart is not None
    places = {text: y for y, text in chart.levels}
    assert places["0"] == chart.bottom
    assert places["0.5"] == pytest.approx((places["0"] + places["1"]) / 2)


def test_what_is_not_a_number_leaves_a_gap() -> None:
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 2.0), (4, math.inf), (5, 3.0)]
    chart = draw_chart([Series("a", points)], label="a")
    assert chart is not None
    assert len(chart.lines) == 1
    assert len(chart.dots) == 4  # also the points that stand alone
    assert draw_chart([Series("a", [(0, math.nan)])], label="a") is None
    assert draw_chart([], label="a") is None


def test_one_wild_step_does_not_flatten_the_trend() -> None:
    steps = [(float(x), 1.0 + 0.1 * (x % 5)) for x in range(200)]
    steps[50] = (50.0, 1000.0)
    chart = draw_chart([Series("each", steps, "faint"), Series("trend", [(0, 1.2), (199, 1.2)])], label="a")
    assert chart is not None
    assert [one.name for one in chart.legend] == ["each", "trend"]
    assert max(float(text.removesuffix("k")) for _, text in chart.levels) < 10
    assert all(
        chart.top <= float(pair.split(",")[1]) <= chart.bottom for _, text in chart.lines for pair in text.split()
    )


def test_long_series_are_thinned_to_means() -> None:
    points = [(float(x), float(x % 2)) for x in range(100_000)]
    few = thinned(points)
    assert len(few) == 400
    assert all(y == pytest.approx(0.5, abs=0.01) for _, y in few)
    assert thinned(points[:10]) == points[:10]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (3, 97, [25, 50, 75]), (0, 4e-5, [0, 1e-5, 2e-5, 3e-5, 4e-5]), (2, 2, [2])],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1500, "1500"), (20000, "20k"), (2e6, "2M"), (1e-5, "1e-5"), (-0.5, "-0.5")],
)
def test_numbers_are_told_shortly(value: float, text: str) -> None:
    assert told_number(value) == text
