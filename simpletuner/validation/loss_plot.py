"""The course of loss and learning rate as one picture that can be sent to somebody.

Takes the lines of `metrics.jsonl`; knows nothing of the run they come from. The report draws its own curves.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simpletuner.core.files import write_atomic

PLOT = "loss.png"
_PAPER, _INK, _FAINT, _LINE, _SECOND = "#ffffff", "#1d1d22", "#d9d9de", "#2f6fde", "#c2571a"


def draw_loss_plot(folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Write `loss.png` into `folder`.

    Args:
        folder: Where the picture goes.
        metrics: Lines with `step`, `loss` (None where it was not finite) and `learning_rate`.

    Raises:
        ValueError: If there is no line.
        UserError: If the disk is full or closed to writing (exit code 6).
    """
    if not metrics:
        raise ValueError("there is no step to draw")
    write_atomic(folder / PLOT, _draw(metrics))


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


def _draw(metrics: Sequence[Mapping[str, Any]]) -> bytes:
    steps = [int(line["step"]) for line in metrics]
    losses = [math.nan if line.get("loss") is None else float(line["loss"]) for line in metrics]
    rates = [math.nan if line.get("learning_rate") is None else float(line["learning_rate"]) for line in metrics]
    # Not pyplot: it keeps figures and a backend for the whole process.
    # Imported here because it takes a quarter of a second, and a run begins long before its report.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.6), dpi=160, facecolor=_PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    dots = {"marker": "."} if len(steps) < 40 else {}
    span = smoothing_span(len(steps))
    upper.plot(steps, losses, color=_LINE, alpha=0.35, linewidth=1.0, label="each step", **dots)
    upper.plot(steps, smooth(losses, span), color=_LINE, linewidth=2.2, label=f"smoothed over {span} steps")
    upper.set_ylabel("loss", color=_INK)
    upper.legend(frameon=False, labelcolor=_INK, fontsize=9)
    lower.plot(steps, rates, color=_SECOND, linewidth=1.8, **dots)
    lower.set_ylabel("learning rate", color=_INK)
    lower.set_xlabel("step", color=_INK)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lower.set_ylim(bottom=0)
    for axes in (upper, lower):
        axes.set_facecolor(_PAPER)
        axes.grid(color=_FAINT, linewidth=0.6)
        axes.tick_params(colors=_INK, labelsize=9)
        axes.yaxis.get_offset_text().set_color(_INK)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_FAINT)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
