"""Adapters that are put on beside the trained weights while validating: what the options name, read and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.config.sections.validation import ValidationSection
from simpletuner.core.errors import Problem, UserError

KEYS = ("path", "strength", "name")
_NAME = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class FurtherAdapter:
    """One adapter file, its strength, and the name of the videos made with it."""

    name: str
    path: Path
    strength: float


def further_adapters(settings: ValidationSection) -> tuple[FurtherAdapter, ...]:
    """What is put on while validating; empty where nothing is, or `validation_adapter_mode` is none."""
    if settings.validation_adapter_mode == "none":
        return ()
    entries: Sequence[Mapping[str, Any]] = settings.validation_adapter_config or ()
    if settings.validation_adapter_path:
        entries = [
            {
                "path": settings.validation_adapter_path,
                "strength": settings.validation_adapter_strength,
                "name": settings.validation_adapter_name,
            }
        ]
    return tuple(
        FurtherAdapter(
            _NAME.sub("_", str(entry.get("name") or Path(entry["path"]).stem)),
            Path(entry["path"]),
            float(entry.get("strength", 1.0)),
        )
        for entry in entries
    )


def place_entries(entries: Any, where: str, find: Callable[[str], Path | None]) -> list[dict[str, Any]]:
    """The list of `validation_adapter_config` with each path as it was found.

    Args:
        entries: What was written.
        where: Its place, for messages.
        find: The file behind a path as written, or None.

    Raises:
        UserError: With every entry that cannot be used.
    """
    problems, placed, names = [], [], []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        fault = _fault(entry)
        path = find(str(entry["path"])) if not fault else None
        if not fault and path is None:
            fault = f"there is no file '{entry['path']}'"
        if fault:
            problems.append(
                Problem(
                    f"validation_adapter_config, entry {number}: {fault}",
                    'An entry is {"path": FILE, "strength": a number that is not 0, "name": a text}; the path must be '
                    "there, the others may",
                    "Correct it, or remove the entry",
                    where,
                )
            )
            continue
        placed.append({**entry, "path": str(path)})
        names.append(str(entry.get("name") or Path(str(path)).stem))
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        problems.append(
            Problem(
                f"validation_adapter_config names '{doubled[0]}' twice",
                "Videos are called after it",
                "Give each entry a name of its own",
                where,
            )
        )
    if problems:
        raise UserError.of(problems)
    return placed


def _fault(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "it is no object"
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        return f"unknown key '{unknown[0]}'"
    if not isinstance(entry.get("path"), str) or not entry["path"]:
        return "no path"
    strength = entry.get("strength", 1.0)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not strength or strength - strength != 0:
        return f"strength {strength!r}"
    if not isinstance(entry.get("name", ""), str):
        return f"name {entry['name']!r}"
    return ""
