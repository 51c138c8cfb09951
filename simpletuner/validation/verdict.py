"""What a training did, in a few sentences, for somebody who opens its report. Pure: from numbers to words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from simpletuner.validation.loss_plot import smooth, smoothing_span
from simpletuner.validation.run_record import RunRecord
from simpletuner.validation.timeline import sum_spans

_FEW_STEPS = 20  # nothing is said of a trend in fewer
_MOVES = 0.02  # change of the trend over the last quarter, as a share of the whole fall, that is called a change
_RISES = 1.02  # of the lowest held-out loss
_MUCH_TIME = 0.4  # share of the run for anything but training that is worth a sentence


def tell_verdict(record: RunRecord) -> list[str]:
    """Sentences about loss, held-out loss and time; empty when there is nothing to say yet."""
    losses = [math.nan if line.get("loss") is None else float(line["loss"]) for line in record.metrics]
    return [sentence for sentence in (_loss(losses), _held_out(record), _time(record)) if sentence]


def _loss(losses: Sequence[float]) -> str:
    if len(losses) < _FEW_STEPS:
        return ""
    span = smoothing_span(len(losses))
    trend = smooth(losses, span)
    # The mean of a whole span begins at its end.
    first, last, before = trend[span - 1], trend[-1], trend[-max(2, len(trend) // 4)]
    if not all(math.isfinite(value) for value in (first, last, before)) or first <= 0:
        return ""
    change = (last - first) / first
    if abs(change) < _MOVES:
        return f"The loss stayed where it was ({first:.3g})."
    told = f"The loss {'fell' if change < 0 else 'rose'} by {abs(change):.0%}, from {first:.3g} to {last:.3g}"
    late = (last - before) / abs(first - last)
    if change > 0:
        return f"{told}."
    if late < -5 * _MOVES:
        return f"{told}, and was still falling at the end."
    if late > 5 * _MOVES:
        return f"{told}, and rose again in the last quarter."
    return f"{told}, and hardly moved in the last quarter."


def _held_out(record: RunRecord) -> str:
    if not record.evaluations:
        return ""
    curve = record.evaluations[0].curve
    points = [(one.loss, one.step) for one in record.evaluations if one.curve == curve and math.isfinite(one.loss)]
    if len(points) < 2:
        return ""
    lowest, step = min(points)
    last = points[-1][0]
    if last > _RISES * lowest:
        return (
            f"On clips that are not trained it was lowest at step {step} ({lowest:.3g}) and is {last:.3g} now: what "
            "came after that step was learnt by heart."
        )
    return f"On clips that are not trained it went from {points[0][0]:.3g} to {last:.3g}."


def _time(record: RunRecord) -> str:
    sums = dict(sum_spans(record.spans))
    total, videos = sum(sums.values()), sums.get("validation videos", 0.0)
    if total <= 0 or videos / total < _MUCH_TIME:
        return ""
    return f"Validation videos took {videos / total:.0%} of the time."
