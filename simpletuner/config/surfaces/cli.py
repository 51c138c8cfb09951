"""Overrides on the command line: `key=value`, `--key value`, `--key=value` and a bare `--flag`.

A pure projection of the option table: it says what was written where, never whether it is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simpletuner.config.table import OptionSpec, alias_table, option_table
from simpletuner.config.values import FALSE, TRUE
from simpletuner.core.errors import Problem

CONFIG_SUFFIXES = (".json", ".jsonc", ".toml", ".env")
SELECTORS: Mapping[str, str] = {
    "config": "config", "env": "env", "example": "example", "e": "example",
    "config_backend": "config_backend", "config_path": "config",
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """One option as a person wrote it.

    Attributes:
        key: Name as written, without leading dashes.
        value: Not yet read.
        origin: Where it stands ("command line", "config/config.json:12").
    """

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class CommandLine:
    """What the arguments say: which configuration to take, and what to override in it."""

    selection: Mapping[str, str]
    overrides: tuple[Given, ...]
    problems: tuple[Problem, ...]


def canonical_name(key: str) -> str:
    """The option's own name for a key as written: dashes and old names are resolved."""
    name = key.strip().lstrip("-").replace("-", "_")
    lowered = name.lower()
    name = lowered if lowered in option_table() or lowered in alias_table() else name
    return alias_table().get(name, name)


def parse_arguments(arguments: Sequence[str], origin: str = "command line") -> CommandLine:
    """Read overrides; a repeated list option collects its values, otherwise the last one wins."""
    selection: dict[str, str] = {}
    overrides: dict[str, Given] = {}
    problems: list[Problem] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, separator, value = word.lstrip("-").partition("=")
        if not key or not (separator or word.startswith("-")):
            is_file = word.endswith(CONFIG_SUFFIXES)
            fix = f"Write --config {word}" if is_file else "Correct or remove it"
            problems.append(Problem(f"'{word}' is neither key=value nor --key value", fix=fix, where=origin))
            continue
        written: Any = value if separator else _following(key, rest)
        if written is None:
            problems.append(
                Problem(f"'--{key}' needs a value", fix=f"Write {key}=VALUE or --{key} VALUE", where=f"{origin}: {key}")
            )
        elif key.replace("-", "_") in SELECTORS:
            selection[SELECTORS[key.replace("-", "_")]] = str(written)
        else:
            _add(overrides, Given(key, written, origin))
    return CommandLine(selection, tuple(overrides.values()), tuple(problems))


def _following(key: str, rest: list[str]) -> Any:
    """The value after `--key`; True for a bare flag, None when one is missing."""
    spec = option_table().get(canonical_name(key))
    word = rest[0] if rest else None
    if spec is not None and spec.kind == "bool":
        return rest.pop(0) if word is not None and word.lower() in (*TRUE, *FALSE) else True
    if word is None or word.startswith("--"):
        return True if spec is None and key.replace("-", "_") not in SELECTORS else None
    if spec is None and key.replace("-", "_") not in SELECTORS and "=" in word:
        return True
    return rest.pop(0)


def _add(overrides: dict[str, Given], given: Given) -> None:
    name = canonical_name(given.key)
    spec: OptionSpec | None = option_table().get(name)
    earlier = overrides.pop(name, None)
    if earlier is not None and spec is not None and spec.kind == "texts":
        collected = earlier.value if isinstance(earlier.value, list) else [earlier.value]
        given = Given(given.key, [*collected, given.value], given.origin)
    overrides[name] = given
