"""Is it time?"""

from __future__ import annotations


def is_due(step: int, every: int, last: int) -> bool:
    """Whether work that recurs `every` steps is due after `step`; it always is after the `last` one.

    Args:
        step: Optimizer steps done, from 1.
        every: Interval in steps; 0 means only at the end.
        last: Number of the run's last step.
    """
    return step == last or (every > 0 and step % every == 0)
