"""Line charts for the pages of a run: numbers become places; `templates/chart.jinja` writes them as SVG.

Drawn into the page itself: sharp at every size and in the page's own colours. Knows nothing of runs. The page's script
shows the values under the pointer, from `Chart.numbers`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Point = tuple[float, float]
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 10, 22
_MOST_POINTS = 400
_TICKS = 4
_DOTTED = 30  # a line of so few points shows them


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: What it shows, in the legend.
        points: (x, y) in the order of x; a y that is not finite leaves a gap.
        look: A plain line, a faint one behind the others, or a dashed level.
        colour: Number of the colour, from 0; equal numbers mean the same thing in all charts of a page.
    """

    name: str
    points: Sequence[Point]
    look: Literal["line", "faint", "dashed"] = "line"
    colour: int = 0


@dataclass(frozen=True)
class Chart:
    """A chart as it is drawn; lengths are units of a drawing that is scaled to the page.

    Attributes:
        label: What it shows, for people who do not see it.
        width, height: Size of the drawing.
        top, bottom, left, right: Edges of the field with the lines.
        lines: (style classes, "x,y x,y …") of each stretch.
        dots: (style classes, x, y).
        levels: (y, text) of the horizontal lines.
        marks: (x, text, anchor) below the field.
        legend: Series that are named; empty for a single one.
        numbers: What the page's script needs to show values.
    """

    label: str
    width: int
    height: int
    top: float
    bottom: float
    left: float
    right: float
    lines: tuple[tuple[str, str], ...]
    dots: tuple[tuple[str, float, float], ...]
    levels: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, str, str], ...]
    legend: tuple[Series, ...]
    numbers: dict[str, Any]


def draw_chart(
    series: Sequence[Series],
    *,
    label: str,
    width: int = 720,
    height: int = 220,
    from_zero: bool = False,
    x_label: str = "step",
    with_legend: bool = True,
) -> Chart | None:
    """Lay a chart out; None where there is nothing to draw.

    Args:
        series: What is drawn, the last one on top; those without a finite point are left out.
        label: What the chart shows, for people who do not see it.
        width, height: Units of the drawing.
        from_zero: Whether the vertical axis begins at 0.
        x_label: Unit of the horizontal axis.
        with_legend: Whether several series are named above the chart; not where the page does it for many charts.
    """
    drawn = [one for one in series if any(math.isfinite(y) for _, y in one.points)]
    if not drawn:
        return None
    frame = _Frame.around(drawn, width, height, from_zero=from_zero)
    lines, dots = [], []
    for one in drawn:
        kind = f"line {one.look} c{one.colour % 8}"
        stretches = _stretches(one, frame)
        lines += [(kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)) for piece in stretches if len(piece) > 1]
        few = len(one.points) <= _DOTTED and one.look != "dashed"
        dots += [(kind, x, y) for piece in stretches for x, y in piece if few or len(piece) == 1]
    return Chart(
        label, width, height, _TOP, height - _BOTTOM, _LEFT, width - _RIGHT, tuple(lines), tuple(dots),
        levels=tuple((frame.y(tick), told_number(tick)) for tick in nice_ticks(frame.y_low, frame.y_high)),
        marks=_marks(frame, x_label),
        legend=tuple(drawn) if with_legend and len(drawn) > 1 else (),
        numbers={
            "x": x_label,
            "frame": [frame.x_low, frame.x_high, _LEFT, width - _RIGHT],
            "lines": [
                {"name": one.name, "points": [[_short(x), _short(y)] for x, y in thinned(one.points)]}
                for one in drawn
                if one.look != "faint"
            ],
        },
    )  # fmt: skip


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most `most` points: means of equal stretches, over what is finite in them."""
    if len(points) <= most:
        return list(points)
    means = []
    for number in range(most):
        piece = points[number * len(points) // most : (number + 1) * len(points) // most]
        finite = [y for _, y in piece if math.isfinite(y)]
        means.append((piece[len(piece) // 2][0], sum(finite) / len(finite) if finite else math.nan))
    return means


def nice_ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """Round numbers inside [low, high], about `count` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Frame:
    """How numbers become places."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int
    height: int

    @classmethod
    def around(cls, series: Sequence[Series], width: int, height: int, *, from_zero: bool) -> _Frame:
        xs = [x for one in series for x, _ in one.points]
        # What is faint may leave the picture: single wild steps would flatten everything else.
        firm = [y for one in series if one.look != "faint" for _, y in one.points if math.isfinite(y)]
        faint = sorted(y for one in series if one.look == "faint" for _, y in one.points if math.isfinite(y))
        ys = [*firm, *faint[len(faint) // 50 : len(faint) - len(faint) // 50]] or faint
        low, high = min(ys), max(ys)
        low = min(low, 0.0) if from_zero else low
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return cls(min(xs), max(xs), low if from_zero and low == 0 else low - room, high + room, width, height)

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low) if self.x_high > self.x_low else 0.5
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = min(max((value - self.y_low) / (self.y_high - self.y_low), 0.0), 1.0)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)


def _marks(frame: _Frame, x_label: str) -> tuple[tuple[float, str, str], ...]:
    ticks = [tick for tick in nice_ticks(frame.x_low, frame.x_high, 6) if x_label != "step" or tick == int(tick)]
    marks = [(frame.x(tick), told_number(tick), "middle") for tick in ticks]
    return ((_LEFT - 18, x_label, "end"), *marks)


def _stretches(one: Series, frame: _Frame) -> list[list[Point]]:
    """Places of the points of one line, cut where a value is missing."""
    pieces: list[list[Point]] = [[]]
    for x, y in thinned(one.points):
        if math.isfinite(y):
            pieces[-1].append((frame.x(x), frame.y(y)))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def told_number(value: float) -> str:
    """A number for an axis: short, without a tail of zeros."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e4 or size < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        if size >= 1e4 and size < 1e7:
            return f"{value / 1000:g}k" if size < 1e6 else f"{value / 1e6:g}M"
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
