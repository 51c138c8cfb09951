"""Before anything is cached: whether what the run is to publish can be published at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Problem, Severity, UserError
from simpletuner.events.sinks.hub_preflight import examine_hub
from simpletuner.events.types import Event, Noticed

PATIENCE_SECONDS = 15.0


def check_publishing(config: RunConfig, emit: Callable[[Event], None]) -> None:
    """Ask the targets; a missing repository on the Hub is made.

    Raises:
        UserError: If a login, a right or a bucket is missing. A target that cannot be reached is a warning.
    """
    found = examine_publishing(config, seconds=PATIENCE_SECONDS, may_create=True)
    errors = [problem for problem in found if problem.severity is Severity.ERROR]
    if errors:
        raise UserError.of(errors)
    for problem in found:
        emit(Noticed("warning" if problem.severity is Severity.WARNING else "note", str(problem)))


def examine_publishing(config: RunConfig, *, seconds: float, may_create: bool) -> list[Problem]:
    """All that stands against it; see `check_publishing`."""
    option = "push_to_hub" if config.reporting.push_to_hub else "push_checkpoints_to_hub"
    folder = Path(config.checkpoint.output_dir)
    where = f"{config.origins.get(option, 'default')}: {option}"
    found = examine_hub(config.reporting, folder, seconds=seconds, may_create=may_create, where=where)
    if config.places:
        from simpletuner.events.sinks.s3 import targets

        place = f"{config.origins.get('publishing_config', 'default')}: publishing_config"
        for target in targets(config.places, config.reporting.tracker_run_name):
            found += target.examine(place)
    return found
