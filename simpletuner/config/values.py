"""From what a person wrote to a typed value, and whether that value may be used.

Files, flags and the environment write the same option as a number, a text or a word; this module
reads them all alike. It must not know where a value stood.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from simpletuner.config.table import OptionSpec
from simpletuner.core.catalog import did_you_mean

MANY_CHOICES, SOME_CHOICES = 20, 8  # longer lists of values are told by their beginning
TRUE = ("true", "yes", "on", "y", "1")
FALSE = ("false", "no", "off", "n", "0")


class UnreadableError(ValueError):
    """A value that breaks the rule of its option: (rule, fix)."""

    def __init__(self, rule: str, fix: str = "") -> None:
        super().__init__(rule)
        self.rule = rule
        self.fix = fix


def show(value: Any) -> str:
    """The value as a person would write it in JSON; a long one loses its middle, since a path's end tells most."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 120 else f"{text[:40]}…{text[-79:]}"


def is_absent(spec: OptionSpec, raw: Any) -> bool:
    """Whether `raw` says "not given": null, or an empty text where that is no value of its own."""
    own_meaning = spec.facts.may_be_empty or spec.facts.empty_fix
    return raw is None or (isinstance(raw, str) and not _unquote(raw) and not own_meaning)


def read_value(spec: OptionSpec, raw: Any) -> Any:
    """The typed value of `raw`; planned words of a choice are read too (see `refusal`).

    Raises:
        UnreadableError: If it cannot be read or is outside the range.
    """
    if isinstance(raw, str):
        raw = _unquote(raw)
    if spec.kind == "bool":
        return _read_bool(raw)
    if spec.kind == "choice":
        return _read_choice(spec, raw)
    if spec.kind in ("int", "float"):
        if isinstance(raw, str) and raw.lower() in spec.choices:
            return raw.lower()
        return _in_range(spec, _read_number(raw, whole=spec.kind == "int"))
    if spec.kind == "text" or (spec.kind == "text or texts" and not isinstance(raw, (list, tuple))):
        return _read_text(spec, raw)
    if spec.kind in ("texts", "text or texts"):
        return [_read_item(spec, item) for item in _read_list(raw)]
    if spec.kind == "numbers":
        return tuple(_read_number(item, whole=False) for item in _read_list(raw))
    if spec.kind == "block" and not isinstance(raw, Mapping):
        raise UnreadableError("It must be an object: { … }")
    return raw


def refusal(spec: OptionSpec, value: Any) -> tuple[str, str] | None:
    """(rule, fix) when the readable `value` asks for something that is not there; None when it may be used."""
    facts = spec.facts
    if value == spec.default or value in facts.neutral or _says_nothing(spec, value):
        return None
    neutral = "remove it" if spec.default is None or spec.default is ... else f"remove it, or set {show(spec.default)}"
    if facts.refused:
        return f"It cannot be used: {facts.refused}", capitalised(neutral)
    if facts.planned:
        return f"Not built yet: {facts.planned}", capitalised(neutral)
    if isinstance(value, str) and value in facts.refused_values:
        reason, _, advice = facts.refused_values[value].partition("; use ")
        built = f"use {advice or ', '.join(spec.choices)}" if advice or spec.choices else "remove it"
        return f"It cannot be used: {reason}", capitalised(built)
    if isinstance(value, str) and spec.kind != "text" and value in facts.planned_values:
        built = f"use {', '.join(spec.choices)}" if spec.choices else "remove it"
        return f"Not built yet: {facts.planned_values[value].rstrip(',')}", capitalised(built)
    return None


def _says_nothing(spec: OptionSpec, value: Any) -> bool:
    """False, empty and "none" switch an optional feature off, whatever its type."""
    return spec.facts.planned != "" and (value is False or value in ("", "none", "false", [], {}))


def capitalised(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _unquote(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def _read_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if raw in (0, 1) and isinstance(raw, (int, float)):
        return bool(raw)
    word = raw.lower() if isinstance(raw, str) else ""
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise UnreadableError("It must be true or false")


def _read_number(raw: Any, *, whole: bool) -> int | float:
    rule = "It must be a whole number" if whole else "It must be a number"
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise UnreadableError(rule)
    try:
        if whole and not isinstance(raw, float):
            try:
                return int(raw)
            except ValueError:
                pass  # "1e4" and "400.0" are whole numbers too
        number = float(raw)
    except (ValueError, OverflowError):
        raise UnreadableError(rule) from None
    if not math.isfinite(number) or (whole and not number.is_integer()):
        raise UnreadableError(rule)
    return int(number) if whole else number


def _in_range(spec: OptionSpec, number: int | float) -> int | float:
    low, high = spec.minimum, spec.maximum
    too_low = low is not None and (number <= low if spec.open_minimum else number < low)
    too_high = high is not None and (number >= high if spec.open_maximum else number > high)
    if too_low or too_high:
        unit = f" {spec.facts.unit}" if spec.facts.unit else ""
        raise UnreadableError(f"It must be {spec.range_text}{unit}")
    return number


def _read_choice(spec: OptionSpec, raw: Any) -> str:
    if isinstance(raw, bool) and str(raw).lower() in spec.facts.value_aliases:
        raw = str(raw).lower()  # a switch that has grown names
    if not isinstance(raw, str) and not (isinstance(raw, (int, float)) and not isinstance(raw, bool)):
        raise UnreadableError(_told_choices(spec))
    written = str(raw)
    lowered = {word.lower(): word for word in spec.known_choices}
    word = spec.facts.value_aliases.get(written.lower(), written).lower()
    if word in lowered:
        return lowered[word]
    raise UnreadableError(_told_choices(spec), did_you_mean(written, list(spec.choices)))


def _told_choices(spec: OptionSpec) -> str:
    if len(spec.choices) <= MANY_CHOICES:
        return f"It must be one of: {', '.join(spec.choices)}"
    some = ", ".join(spec.choices[:SOME_CHOICES])
    return f"It must be one of: {some}, … (`simpletuner options {spec.name}` lists all {len(spec.choices)})"


def _read_text(spec: OptionSpec, raw: Any) -> str | None:
    if isinstance(raw, str):
        if not raw.strip() and spec.facts.empty_fix:
            raise UnreadableError("It must not be empty", spec.facts.empty_fix)
        return raw
    if raw is False and spec.nullable:
        return None
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        return str(raw)
    raise UnreadableError("It must be a text")


def _read_item(spec: OptionSpec, raw: Any) -> str:
    text = None if raw is None else _read_text(spec, raw)
    if text is None:
        raise UnreadableError("Each item must be a text")
    return text


def _read_list(raw: Any) -> list[Any]:
    if isinstance(raw, (list, tuple)):
        return list(raw)
    if not isinstance(raw, str):
        raise UnreadableError("It must be a list")
    if raw.startswith("["):
        try:
            return list(json.loads(raw))
        except ValueError:
            raise UnreadableError('It must be a list, such as ["to_q", "to_k"] or to_q,to_k') from None
    return [part.strip() for part in raw.split(",") if part.strip()]
