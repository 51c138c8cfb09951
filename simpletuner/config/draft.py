"""What the rules look at: the options as somebody wrote them, before they are a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.values import show
from simpletuner.core.errors import Problem, Severity


@dataclass(frozen=True)
class Draft:
    """The options of a run before they are a `RunConfig`.

    Attributes:
        values: Every option; also values that are refused as not built, so that rules can speak of them.
        given: Options somebody wrote.
        origins: Option -> where it stands.
        prompts: Validation prompts.
    """

    values: Mapping[str, Any]
    given: frozenset[str]
    origins: Mapping[str, str]
    prompts: tuple[ValidationPrompt, ...] = ()

    def place(self, *names: str) -> str:
        """Where the first of these options that somebody wrote stands, for the `where` of a problem."""
        return next((self.origins[name] for name in names if name in self.origins), names[0])

    def told(self, name: str, value: str = "") -> str:
        """ "name = value", and whether it is only the default."""
        shown = value or show(self.values[name])
        return f"{name} = {shown}" + ("" if name in self.given else " (default)")


Check = Callable[[Draft], Iterator[Problem]]


@dataclass(frozen=True)
class Rule:
    """One rule: the options it reads, what it looks at, and for people what it is about."""

    reads: tuple[str, ...]
    check: Check
    about: str


def note(what: str, rule: str = "", fix: str = "", where: str = "") -> Problem:
    """A finding that changes nothing but is worth knowing."""
    return Problem(what, rule, fix, where, Severity.NOTE)


def warning(what: str, rule: str, fix: str, where: str) -> Problem:
    """A finding that a run survives but its owner may regret."""
    return Problem(what, rule, fix, where, Severity.WARNING)
