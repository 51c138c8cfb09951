"""Is it time? The one place that decides when work which recurs is due: checkpoints, videos, measurements.

Pure counting; imports nothing heavy, because a plan counts with it as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Moment:
    """Where a run stands after a step.

    Attributes:
        step: Optimizer steps done, from 1.
        last: Number of the run's last step.
        epochs: Passes over the data done, as a fraction; whole at the end of an epoch.
        epochs_before: The same before the step.
    """

    step: int
    last: int
    epochs: Fraction = Fraction(0)
    epochs_before: Fraction = Fraction(0)


@dataclass(frozen=True)
class Rhythm:
    """How often something recurs; by steps, by epochs, or by both.

    Attributes:
        steps: Every so many steps; 0 never.
        epochs: Whenever so many epochs are full; may be a part of one; 0 never.
        from_step: Not before this step.
        from_epoch: Not before this epoch (from 1).
        at_end: Whether also after the last step, whatever the rest says.
    """

    steps: int = 0
    epochs: Fraction | float = 0
    from_step: int = 0
    from_epoch: int = 0
    at_end: bool = True

    @property
    def _part(self) -> Fraction:
        # 0.1 means a tenth, not the nearest number that a computer has.
        return Fraction(str(self.epochs))


def is_due(rhythm: Rhythm, moment: Moment) -> bool:
    """Whether work of this rhythm is due at this moment."""
    if moment.step == moment.last:
        return rhythm.at_end
    if moment.step < rhythm.from_step or math.ceil(moment.epochs) < rhythm.from_epoch:
        return False
    by_steps = rhythm.steps > 0 and moment.step % rhythm.steps == 0
    return by_steps or _fills_an_epoch(rhythm, moment)


def _fills_an_epoch(rhythm: Rhythm, moment: Moment) -> bool:
    part = rhythm._part
    return part > 0 and moment.epochs // part > moment.epochs_before // part


def times_due(rhythm: Rhythm, steps: int, steps_per_epoch: int = 0) -> int:
    """How often work of this rhythm is due in a run of `steps` equal steps.

    Args:
        rhythm: What recurs.
        steps: Length of the run.
        steps_per_epoch: Length of an epoch; 0 where it is not known, and then epochs are not counted.
    """
    return len(due_steps(rhythm, steps, steps_per_epoch))


def due_steps(rhythm: Rhythm, steps: int, steps_per_epoch: int = 0) -> list[int]:
    """After which of `steps` equal steps work of this rhythm is due, ascending; arguments as for `times_due`."""
    if steps <= 0:
        return []
    due = set(range(rhythm.steps, steps, rhythm.steps)) if rhythm.steps > 0 else set()
    length = rhythm._part * steps_per_epoch
    if length:
        due |= {math.ceil(count * length) for count in range(1, math.ceil(steps / length))}
    first = max(rhythm.from_step, (rhythm.from_epoch - 1) * steps_per_epoch + 1)
    return sorted(step for step in due if first <= step < steps) + [steps] * rhythm.at_end
