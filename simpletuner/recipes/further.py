"""Adapters that are put on for validation only, beside what is trained (`validation_adapter_*`)."""

from __future__ import annotations

from collections.abc import Callable

from simpletuner.config.run_config import RunConfig
from simpletuner.config.validation_adapters import further_adapters
from simpletuner.core.errors import Problem, UserError
from simpletuner.events.types import Event, Noticed
from simpletuner.models.adapters.visiting import VisitingLora
from simpletuner.recipes.plan import RunPlan


def open_further(
    config: RunConfig, plan: RunPlan, emit: Callable[[Event], None]
) -> tuple[tuple[str, VisitingLora], ...]:
    """Read and check them before training, so that no validation fails after hours.

    Raises:
        UserError: With every file that cannot be used.
    """
    if not config.validation.makes_videos or not config.prompts:
        return ()
    found: list[tuple[str, VisitingLora]] = []
    problems: list[Problem] = []
    for wanted in further_adapters(config.validation):
        try:
            visiting = VisitingLora(plan.family, plan.source, wanted.path, wanted.strength)
        except UserError as error:
            problems += error.problems
            continue
        found.append((wanted.name, visiting))
        told = f"'{wanted.path.name}' at strength {wanted.strength:g} on {visiting.count} layers"
        emit(Noticed("note", f"validation also shows {told}, beside what is trained"))
    if problems:
        raise UserError.of(problems)
    return tuple(found)
