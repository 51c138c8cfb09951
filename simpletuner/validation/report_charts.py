"""The curves of the report: loss, noise bands, evaluation, what the videos measure, and what the machine did. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simpletuner.validation.chart import Chart, Point, Series, draw_chart
from simpletuner.validation.loss_plot import smooth, smoothing_span
from simpletuner.validation.run_record import RunRecord, Sight

_BAND = "loss/sigma_"
_SMALL = (420, 190)  # units of the drawing
# Measure -> (title, how to read it).
MEASURES: Mapping[str, tuple[str, str]] = {
    "likeness": ("Likeness to the base", "1 is the same video; a sudden fall means that something else is shown"),
    "motion": ("Motion", "speed of what is seen, percent of the picture's height per second; 0 is frozen"),
    "flicker": ("Flicker", "brightness that goes up and down from frame to frame; lower is calmer"),
    "sharpness": ("Sharpness", "strength of edges; a fall means blur, a steep rise noise"),
    "colourfulness": ("Colourfulness", "0 is grey, above 80 is gaudy"),
}
_MOST_LINES = 6


@dataclass(frozen=True)
class Titled:
    """A chart with what stands above it."""

    title: str
    told: str
    chart: Chart


def loss_chart(metrics: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Loss of each step, and its trend."""
    points = _column(metrics, "loss")
    if not points:
        return None
    span = smoothing_span(len(points))
    trend = list(zip([x for x, _ in points], smooth([y for _, y in points], span), strict=True))
    lines = [Series("each step", points, "faint"), Series(f"trend over {span} steps", trend)]
    return draw_chart(lines, label="Loss over the steps", width=1080, height=260)


def training_charts(record: RunRecord) -> list[Titled]:
    """Loss on held-out clips, loss per noise band, learning rate, gradient norm; those for which there are numbers."""
    metrics = record.metrics
    found = [
        _titled("Loss on clips that are not trained", "the same noise every time; a rise while the other falls means "
                "that the clips are learnt by heart", _evaluation_series(record), "Evaluation loss over the steps"),
        _titled("The same by noise level", "left is nearly clean, right is nearly noise", _level_series(record),
                "Evaluation loss over the noise level", x_label="σ"),
        _titled("Loss by noise level", "trends; detail is learnt at low levels, composition at high ones",
                _band_series(metrics), "Loss by noise level over the steps"),
        _titled("Learning rate", "", [Series("learning rate", _column(metrics, "learning_rate"))],
                "Learning rate over the steps", from_zero=True),
        _titled("Gradient norm", "before clipping", _with_trend(metrics, "gradient_norm"),
                "Gradient norm over the steps", from_zero=True),
    ]  # fmt: skip
    return [one for one in found if one is not None]


def hardware_charts(
    metrics: Sequence[Mapping[str, Any]], loads: Sequence[tuple[float, Mapping[str, Any]]] = ()
) -> list[Titled]:
    """Seconds per step, memory in use, and over the minutes of the run how busy processor and card were."""
    memory = [(x, y / 1e9) for x, y in _column(metrics, "memory_bytes") if y > 0]
    found = [
        _titled("Seconds per step", "", _with_trend(metrics, "seconds"), "Seconds per step", from_zero=True),
        _titled("Memory", "GB, highest so far on a graphics card, in use on the CPU", [Series("memory", memory)],
                "Memory in gigabytes", from_zero=True),
        _titled("In use", "percent of all cores, and of the card's time", [
            Series("card", _looked(loads, "device_percent")),
            Series("processor, this run", _looked(loads, "own_cpu_percent"), colour=1),
            Series("processor, every program", _looked(loads, "cpu_percent"), "faint"),
        ], "Load in percent over the minutes", from_zero=True, x_label="minute"),
        _titled("Memory of the machine", "percent, every program", [
            Series("machine", _looked(loads, "memory_percent")),
        ], "Memory in percent over the minutes", from_zero=True, x_label="minute"),
        _titled("Power of the card", "watts", [Series("power", _looked(loads, "device_watts"))],
                "Power in watts over the minutes", from_zero=True, x_label="minute"),
        _titled("Heat of the card", "degrees Celsius", [Series("heat", _looked(loads, "device_celsius"))],
                "Temperature over the minutes", from_zero=True, x_label="minute"),
    ]  # fmt: skip
    return [one for one in found if one is not None]


def measure_charts(sights: Sequence[Sight]) -> list[Titled]:
    """One chart per measure with a line per prompt and size, where videos of two moments were measured."""
    charts = []
    for name, (title, told) in MEASURES.items():
        lines = []
        for number, sight in enumerate(sights[:_MOST_LINES]):
            points = [(float(clip.step), clip.measures[name]) for clip in sight.clips if name in clip.measures]
            if points:
                lines.append(Series(f"{sight.title} {sight.size}", points, colour=number))
        label = f"{title} of the validation videos"
        one = _titled(title, told, lines, label, from_zero=name != "likeness", with_legend=False)
        if one is not None and any(len(line.points) > 1 for line in lines):
            charts.append(one)
    return charts


def measure_legend(sights: Sequence[Sight]) -> list[Series]:
    """What the lines of `measure_charts` mean, told once for all of them."""
    named = [Series(f"{sight.title} {sight.size}", (), colour=n) for n, sight in enumerate(sights[:_MOST_LINES])]
    return named if len(named) > 1 else []


def _titled(
    title: str,
    told: str,
    series: Sequence[Series],
    label: str,
    *,
    from_zero: bool = False,
    with_legend: bool = True,
    x_label: str = "step",
) -> Titled | None:
    width, height = _SMALL
    chart = draw_chart(
        series, label=label, from_zero=from_zero, width=width, height=height, with_legend=with_legend, x_label=x_label
    )
    return Titled(title, told, chart) if chart is not None else None


def _column(metrics: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    """(step, value) of every line that has the name; a value that was not finite leaves a gap."""
    return [
        (float(line["step"]), math.nan if line[name] is None else float(line[name])) for line in metrics if name in line
    ]


def _looked(loads: Sequence[tuple[float, Mapping[str, Any]]], name: str) -> list[Point]:
    """(minute, value) of every look that could read it."""
    return [(minute, float(load[name])) for minute, load in loads if load.get(name) is not None]


def _with_trend(metrics: Sequence[Mapping[str, Any]], name: str) -> list[Series]:
    points = _column(metrics, name)
    trend = smooth([y for _, y in points], smoothing_span(len(points)))
    return [
        Series("each step", points, "faint"),
        Series("trend", list(zip([x for x, _ in points], trend, strict=True))),
    ]


def _band_series(metrics: Sequence[Mapping[str, Any]]) -> list[Series]:
    bands: dict[str, list[Point]] = {}
    for line in metrics:
        for name, value in (line.get("terms") or {}).items():
            if name.startswith(_BAND) and value is not None:
                bands.setdefault(name, []).append((float(line["step"]), float(value)))
    lines = []
    for number, name in enumerate(sorted(bands)):
        points = bands[name]
        trend = smooth([y for _, y in points], smoothing_span(len(points)))
        told = name.removeprefix(_BAND).replace("-", " to ")
        lines.append(Series(told, list(zip([x for x, _ in points], trend, strict=True)), colour=number))
    return lines


def _evaluation_series(record: RunRecord) -> list[Series]:
    curves: dict[str, list[Point]] = {}
    for one in record.evaluations:
        curves.setdefault(one.curve, []).append((float(one.step), one.loss))
    return [Series(name, points, colour=number) for number, (name, points) in enumerate(curves.items())]


def _level_series(record: RunRecord) -> list[Series]:
    """Held-out loss over the noise level, at the first measurement and at the last one."""
    measured = [one for one in record.evaluations if one.decides and one.levels]
    if len(measured) < 2 or measured[0].step == measured[-1].step:
        return []
    first, last = measured[0], measured[-1]
    return [
        Series(f"step {first.step}", sorted(first.levels), "dashed"),
        Series(f"step {last.step}", sorted(last.levels)),
    ]
