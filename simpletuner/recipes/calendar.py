"""When a run does what recurs, looked up once per step."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from typing import Literal

from simpletuner.recipes.run_length import Rhythms
from simpletuner.recipes.session import Session
from simpletuner.training.due import Moment, is_due

Work = Literal["checkpoint", "rolling", "evaluation", "validation"]


class Calendar:
    """Says what is due; made for one start of one run."""

    def __init__(self, session: Session, rhythms: Rhythms) -> None:
        self._session = session
        self._rhythms = {field.name: getattr(rhythms, field.name) for field in fields(rhythms)}
        self._epochs: Fraction = session.batches.epochs_done
        self._step = session.state.step
        self._due: frozenset[str] = frozenset()

    def look(self, step: int) -> bool:
        """Note what is due after `step`, which was just taken; says whether anything is."""
        moment = Moment(step, self._session.state.total_steps, self._session.batches.epochs_done, self._epochs)
        self._epochs, self._step = moment.epochs, step
        self._due = frozenset(name for name, rhythm in self._rhythms.items() if is_due(rhythm, moment))
        return bool(self._due)

    def is_due(self, work: Work, step: int) -> bool:
        """Whether this is due after `step`."""
        return step == self._step and work in self._due
