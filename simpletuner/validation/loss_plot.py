"""The course of loss and learning rate as pictures, one for light and one for dark pages.

Takes the lines of `metrics.jsonl`; knows nothing of the run they come from.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.core.files import write_atomic

LIGHT_PLOT, DARK_PLOT = "loss.png", "loss_dark.png"


@dataclass(frozen=True)
class _Theme:
    paper: str
    ink: str
    faint: str
    line: str
    second: str


_THEMES = {
    LIGHT_PLOT: _Theme("#ffffff", "#1d1d22", "#d9d9de", "#2f6fde", "#c2571a"),
    DARK_PLOT: _Theme("#1b1c20", "#e8e8ec", "#3b3c44", "#7aa8ff", "#f0a46b"),
}


def draw_loss_plots(folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Write `loss.png` and `loss_dark.png` into `folder`.

    Args:
        folder: Where the pictures go.
        metrics: Lines with `step`, `loss` (None where it was not finite) and `learning_rate`.

    Raises:
        ValueError: If there is no line.
        UserError: If the disk is full or closed to writing (exit code 6).
    """
    if not metrics:
        raise ValueError("there is no step to draw")
    for name, theme in _THEMES.items():
        write_atomic(folder / name, _draw(metrics, theme))


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Exponential moving mean over about `span` values, free of the bias of its start.

    Values that are not finite leave the mean where it was.
    """
    decay = 1 - 2 / (span + 1)
    total = weight = 0.0
    means = []
    for value in values:
        if math.isfinite(value):
            total = decay * total + value
            weight = decay * weight + 1
        means.append(total / weight if weight else math.nan)
    return means


def smoothing_span(count: int) -> int:
    """How many steps a smoothed point looks back over: a 20th of the run, 5 at least."""
    return max(5, count // 20)


def _draw(metrics: Sequence[Mapping[str, Any]], theme: _Theme) -> bytes:
    steps = [int(line["step"]) for line in metrics]
    losses = [math.nan if line.get("loss") is None else float(line["loss"]) for line in metrics]
    rates = [math.nan if line.get("learning_rate") is None else float(line["learning_rate"]) for line in metrics]
    # Not pyplot: it keeps figures and a backend for the whole process.
    # Imported here because it takes a quarter of a second, and a run begins long before its report.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.6), dpi=160, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    dots = {"marker": "."} if len(steps) < 40 else {}
    span = smoothing_span(len(steps))
    upper.plot(steps, losses, color=theme.line, alpha=0.35, linewidth=1.0, label="each step", **dots)
    upper.plot(steps, smooth(losses, span), color=theme.line, linewidth=2.2, label=f"smoothed over {span} steps")
    upper.set_ylabel("loss", color=theme.ink)
    upper.legend(frameon=False, labelcolor=theme.ink, fontsize=9)
    lower.plot(steps, rates, color=theme.second, linewidth=1.8, **dots)
    lower.set_ylabel("learning rate", color=theme.ink)
    lower.set_xlabel("step", color=theme.ink)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lower.set_ylim(bottom=0)
    for axes in (upper, lower):
        axes.set_facecolor(theme.paper)
        axes.grid(color=theme.faint, linewidth=0.6)
        axes.tick_params(colors=theme.ink, labelsize=9)
        axes.yaxis.get_offset_text().set_color(theme.ink)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.faint)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
