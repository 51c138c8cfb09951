"""Courses of the learning rate: the names of `lr_scheduler` and the functions behind them."""

from __future__ import annotations

from dataclasses import dataclass

from simpletuner.core.catalog import Catalog


@dataclass(frozen=True)
class ScheduleRow:
    """One course.

    Attributes:
        target: The function (step, plan) -> rate.
        warms_up: Whether `lr_warmup_steps` has an effect.
    """

    target: str
    warms_up: bool


_MODULE = "simpletuner.maths.schedules"

SCHEDULES: Catalog[ScheduleRow] = Catalog(
    "learning-rate schedule",
    {
        "constant": ScheduleRow(f"{_MODULE}:constant", warms_up=False),
        "constant_with_warmup": ScheduleRow(f"{_MODULE}:constant_with_warmup", warms_up=True),
        "linear": ScheduleRow(f"{_MODULE}:linear", warms_up=True),
        "polynomial": ScheduleRow(f"{_MODULE}:polynomial", warms_up=True),
        "cosine": ScheduleRow(f"{_MODULE}:cosine", warms_up=True),
        "cosine_with_restarts": ScheduleRow(f"{_MODULE}:cosine_with_restarts", warms_up=True),
        "sine": ScheduleRow(f"{_MODULE}:sine", warms_up=True),
    },
)
