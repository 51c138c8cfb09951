"""Courses of the learning rate: pure functions from a step to a rate.

Every course has the signature (step, plan) -> rate, where `step` counts the optimizer steps done
before this one (0 for the first), so that a resumed run needs no saved schedule. Names map to these
functions in `config/catalogs/schedules.py`. No torch here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RatePlan:
    """What shapes a course.

    Attributes:
        base: Learning rate of the plateau, above 0.
        total_steps: Optimizer steps of the run, at least 1.
        warmup_steps: Steps from zero to `base`; 0 starts at `base`.
        end: Rate at the end of a decaying course, at least 0.
        power: Exponent of the polynomial course, above 0.
        cycles: How often a course with restarts begins anew, at least 1.
    """

    base: float
    total_steps: int
    warmup_steps: int = 0
    end: float = 0.0
    power: float = 1.0
    cycles: int = 1


def constant(step: int, plan: RatePlan) -> float:
    """The plateau from the first step to the last; a warm-up is ignored."""
    return plan.base


def constant_with_warmup(step: int, plan: RatePlan) -> float:
    """Straight rise from zero over the warm-up, then the plateau."""
    return _warming_up(step, plan, plan.base)


def linear(step: int, plan: RatePlan) -> float:
    """Straight rise over the warm-up, then a straight fall to `end` at the last step."""
    return _warming_up(step, plan, _between(plan, 1.0 - _progress(step, plan)))


def polynomial(step: int, plan: RatePlan) -> float:
    """Straight rise over the warm-up, then end + (base - end) * (1 - progress) ** power."""
    return _warming_up(step, plan, _between(plan, (1.0 - _progress(step, plan)) ** plan.power))


def cosine(step: int, plan: RatePlan) -> float:
    """Half a cosine from `base` to `end`, in one of two readings of the warm-up.

    Below `total_steps` the warm-up is one: a straight rise, then the decay over what is left. From
    `total_steps` upwards it cannot be a warm-up (the run would never leave it). There it is read as
    the half period, the way the guide's 400000 warm-up steps of 400000 are meant: one decay over
    the run, from the first step, without warm-up. The rate never rises again after the end.
    """
    if warmup_is_half_period(plan):
        return _between(plan, _half_cosine(min(step / plan.total_steps, 1.0)))
    return _warming_up(step, plan, _between(plan, _half_cosine(_progress(step, plan))))


def cosine_with_restarts(step: int, plan: RatePlan) -> float:
    """Straight rise over the warm-up, then `cycles` equal cosines, each from `base` to `end`.

    Source: Loshchilov and Hutter 2016 (arXiv 1608.03983), warm restarts of equal length.
    """
    progress = _progress(step, plan)
    within = progress * plan.cycles % 1.0 if progress < 1.0 else 1.0
    return _warming_up(step, plan, _between(plan, _half_cosine(within)))


def sine(step: int, plan: RatePlan) -> float:
    """Half a sine: from half-way between `end` and `base` up to `base` and back, after a straight warm-up.

    A warm-up of the whole run or more is read as the half period, as in `cosine`: no warm-up, one half wave.
    """
    if warmup_is_half_period(plan):
        return _between(plan, _half_sine(min(step / plan.total_steps, 1.0)))
    start = _between(plan, _half_sine(0.0))
    if step < plan.warmup_steps:
        return start * step / plan.warmup_steps
    return _between(plan, _half_sine(_progress(step, plan)))


def warmup_is_half_period(plan: RatePlan) -> bool:
    """Whether `cosine` and `sine` read the warm-up as half a period instead of a warm-up."""
    return plan.warmup_steps >= plan.total_steps


def _warming_up(step: int, plan: RatePlan, after: float) -> float:
    return plan.base * step / plan.warmup_steps if step < plan.warmup_steps else after


def _progress(step: int, plan: RatePlan) -> float:
    """Share of the steps after the warm-up that is done, in [0, 1]."""
    decaying = max(plan.total_steps - plan.warmup_steps, 1)
    return min(max((step - plan.warmup_steps) / decaying, 0.0), 1.0)


def _half_cosine(progress: float) -> float:
    return (1.0 + math.cos(math.pi * progress)) / 2.0


def _half_sine(progress: float) -> float:
    return (1.0 + math.sin(math.pi * progress)) / 2.0


def _between(plan: RatePlan, share: float) -> float:
    return plan.end + (plan.base - plan.end) * share
