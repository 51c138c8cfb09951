"""What the course of the evaluation loss says: which step was best, when it is time to stop, when clips are learnt by
heart.

Pure: from the evaluations of a run so far to a judgement. So a resumed run judges as the straight one, from the record
in its folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

RISING_EVALUATIONS: Final = 2  # so many in a row above the best, before a rise is told
RISE_WORTH_TELLING: Final = 0.01  # share of the best loss


@dataclass(frozen=True)
class Mark:
    """One evaluation.

    Attributes:
        step: Optimizer steps done.
        loss: Evaluation loss of the weights that decide.
        train_loss: Mean loss of the steps since the evaluation before; not a number where there was none.
    """

    step: int
    loss: float
    train_loss: float = math.nan


@dataclass(frozen=True)
class Judgement:
    """Where a run stands after its last evaluation.

    Attributes:
        best: The evaluation with the lowest loss, the first of equals; None before the first one.
        is_best: Whether it is the last one.
        patience_spent: Evaluations in a row that did not improve enough.
        stops: Whether patience is at its end.
        warning: A sentence when the clips are being learnt by heart; empty otherwise, and told once per rise.
    """

    best: Mark | None = None
    is_best: bool = False
    patience_spent: int = 0
    stops: bool = False
    warning: str = ""


def judge(marks: Sequence[Mark], patience: int = 0, min_delta: float = 0.0) -> Judgement:
    """Look at the evaluations of a run, in the order of their steps.

    Args:
        marks: All evaluations so far; one without training before it (step 0) counts like the others.
        patience: Evaluations in a row without improvement after which the run stops; 0 never.
        min_delta: How much lower the loss must be to count as an improvement.
    """
    best: Mark | None = None
    reference, spent, stops = math.inf, 0, False
    for mark in marks:
        if not math.isnan(mark.loss) and (best is None or mark.loss < best.loss):
            best = mark
        if mark.loss < reference - min_delta:
            reference, spent = mark.loss, 0
        else:
            spent += 1
        stops = 0 < patience <= spent
    is_best = best is not None and bool(marks) and marks[-1] is best
    return Judgement(best, is_best, spent, stops, _told_rise(marks, best))


def _told_rise(marks: Sequence[Mark], best: Mark | None) -> str:
    """The sentence about learning by heart, at the evaluation that makes it clear."""
    if best is None:
        return ""
    after = marks[[mark.step for mark in marks].index(best.step) + 1 :]
    if len(after) != RISING_EVALUATIONS or any(_rise(mark, best) < RISE_WORTH_TELLING for mark in after):
        return ""
    last = after[-1]
    told = (
        f"the loss on clips that are not trained has risen from {best.loss:.4f} (step {best.step}) to {last.loss:.4f} "
        f"(step {last.step})"
    )
    trained = [mark.train_loss for mark in (best, last)]
    if not any(map(math.isnan, trained)) and trained[1] < trained[0]:
        told += f", while the training loss went on falling ({trained[0]:.4f} to {trained[1]:.4f})"
    return (
        f"{told}: the model begins to learn the trained clips by heart. The weights of step {best.step} are kept in "
        "best/; more clips, a smaller rank or fewer steps help."
    )


def _rise(mark: Mark, best: Mark) -> float:
    return (mark.loss - best.loss) / best.loss if best.loss > 0 else 0.0
