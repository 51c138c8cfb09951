"""One function decides what is due: by steps, by epochs, from a moment on, and at the end; a plan counts the same."""

from __future__ import annotations

from fractions import Fraction

import pytest

from simpletuner.training import due
from simpletuner.training.due import Moment, Rhythm, is_due, times_due


def due_steps(rhythm: Rhythm, steps: int, per_epoch: int) -> list[int]:
    """The steps of a run with epochs of equal length after which work of this rhythm is due."""
    found, before = [], Fraction(0)
    for step in range(1, steps + 1):
        after = Fraction(step, per_epoch)
        if is_due(rhythm, Moment(step, steps, after, before)):
            found.append(step)
        before = after
    return found


@pytest.mark.parametrize(
    ("rhythm", "steps"),
    [
        (Rhythm(10), [10, 20, 25]),
        (Rhythm(0), [25]),
        (Rhythm(10, at_end=False), [10, 20]),
        (Rhythm(0, 1), [6, 12, 18, 24, 25]),
        (Rhythm(0, 2), [12, 24, 25]),
        (Rhythm(10, 2), [10, 12, 20, 24, 25]),
        (Rhythm(0, 0.5), [3, 6, 9, 12, 15, 18, 21, 24, 25]),
        (Rhythm(0, Fraction(1, 4)), [2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, 20, 21, 23, 24, 25]),
        (Rhythm(5, from_step=12), [15, 20, 25]),
        (Rhythm(5, from_step=15), [15, 20, 25]),
        (Rhythm(5, from_epoch=3), [15, 20, 25]),
        (Rhythm(0, 1, from_epoch=3), [18, 24, 25]),
        (Rhythm(5, from_step=100), [25]),
        (Rhythm(1000), [25]),
    ],
)
def test_what_is_due(rhythm: Rhythm, steps: list[int]) -> None:
    assert due_steps(rhythm, 25, 6) == steps


def test_a_step_that_ends_an_epoch_between_two_counts_once() -> None:
    # Steps of unequal size: from 0.4 to 2.1 epochs two ends are passed, and the work is done once.
    assert is_due(Rhythm(0, 1), Moment(5, 9, Fraction(21, 10), Fraction(4, 10)))
    assert not is_due(Rhythm(0, 1), Moment(6, 9, Fraction(25, 10), Fraction(21, 10)))


def test_a_tenth_of_an_epoch_is_not_lost_to_rounding() -> None:
    assert len(due_steps(Rhythm(0, 0.1, at_end=False), 1000, 10)) == 999


@pytest.mark.parametrize("steps", [1, 7, 12, 100])
@pytest.mark.parametrize("every", [0, 1, 5, 11, 1000])
@pytest.mark.parametrize("epochs", [0, 0.3, 1, 2])
@pytest.mark.parametrize("start", [{}, {"from_step": 6}, {"from_epoch": 2}, {"at_end": False}])
def test_a_plan_counts_what_the_run_does(steps: int, every: int, epochs: float, start: dict[str, int]) -> None:
    rhythm = Rhythm(every, epochs, **start)
    assert due.due_steps(rhythm, steps, 5) == due_steps(rhythm, steps, 5)
    assert times_due(rhythm, steps, 5) == len(due_steps(rhythm, steps, 5))


def test_epochs_of_unknown_length_are_not_counted() -> None:
    assert times_due(Rhythm(10, 1), 25) == 3
    assert times_due(Rhythm(10, 1), 0) == 0
