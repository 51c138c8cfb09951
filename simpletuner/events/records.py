"""Events as lines of the journal and back. Knows neither files nor receivers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from simpletuner.events import types
from simpletuner.events.types import Event


@dataclass(frozen=True)
class Told:
    """One event as it stands in the journal.

    Attributes:
        sequence: Its number, from 1 over all starts in the run folder.
        event: What happened.
        time: When, ISO 8601 in UTC.
        end: Offset in bytes behind its line.
        is_repeat: Whether it may have been delivered before, in a start that was killed.
    """

    sequence: int
    event: Event
    time: str = ""
    end: int = 0
    is_repeat: bool = False


def kind_of(event_type: type[Event]) -> str:
    """Name of an event's kind: its class name in snake case, such as "step_finished"."""
    return _snake_case(event_type.__name__)


@cache
def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


# All kinds stand in one file, so that the set is closed once that file is read.
KINDS: Mapping[str, type[Event]] = {
    kind_of(kind): kind
    for kind in vars(types).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
}


def event_of(record: Mapping[str, Any]) -> Event | None:
    """The event of a journal line; None when its kind, or what it lacks, is not of this version.

    Numbers that were not finite stand as null in the journal and come back as not-a-number.
    """
    kind = KINDS.get(str(record.get("kind")))
    if kind is None:
        return None
    values = {
        field.name: _read(record[field.name], str(field.type))
        for field in dataclasses.fields(kind)
        if field.name in record
    }
    try:
        return kind(**values)
    except TypeError:
        return None


def _read(value: Any, annotation: str) -> Any:
    if value is None and annotation == "float":
        return float("nan")
    inner = "float" if "float" in annotation else ""
    if isinstance(value, list):
        return tuple(_read(item, inner) for item in value)
    if isinstance(value, dict):
        return {name: _read(item, inner) for name, item in value.items()}
    return value
