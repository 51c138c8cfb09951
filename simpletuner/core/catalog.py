"""Closed vocabularies: a name, and the row that says what it stands for.

Rows are plain data, so listing a catalog imports nothing heavy; `load` imports the code behind a
row only when somebody wants it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from simpletuner.core.errors import UserError


class CatalogRow(Protocol):
    """What every row states: where its code is ("package.module:attribute")."""

    @property
    def target(self) -> str: ...


Row = TypeVar("Row", bound=CatalogRow)


class Catalog(Generic[Row]):
    """A frozen mapping from name to row that helps with misspelt names."""

    def __init__(self, noun: str, rows: Mapping[str, Row]) -> None:
        self._noun = noun
        self._rows = dict(rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __getitem__(self, name: str) -> Row:
        """Give the row called `name`.

        Raises:
            UserError: If there is none; the message names the nearest one and lists all.
        """
        if name in self._rows:
            return self._rows[name]
        raise UserError(
            f"unknown {self._noun} '{name}'",
            f"Available: {', '.join(self._rows)}",
            did_you_mean(name, self._rows),
        )

    def load(self, name: str) -> Any:
        """Import and return what the row called `name` points at."""
        module_name, _, attribute = self[name].target.partition(":")
        return getattr(importlib.import_module(module_name), attribute)


def did_you_mean(name: str, known: Iterator[str] | Mapping[str, Any] | list[str]) -> str:
    """A suggestion sentence for a misspelt name, or an empty text when nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else ""
