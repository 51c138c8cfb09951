"""Commands that a configuration names: read into arguments, with placeholders filled in. No shell ever reads one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Final

_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*\Z", re.IGNORECASE)


def split_command(text: str) -> list[str]:
    """Words of a command as a shell would read them: quotes group, backslashes escape, nothing is expanded.

    Raises:
        ValueError: If a quote is left open, or there is no word.
    """
    words = shlex.split(text)
    if not words:
        raise ValueError("it names no program")
    return words


def placeholders(text: str) -> list[str]:
    """Names in braces, each once, in their order."""
    return list(dict.fromkeys(_PLACEHOLDER.findall(text)))


def fill_command(text: str, values: Mapping[str, str]) -> list[str]:
    """Arguments of the command; a value stays one argument whatever it holds.

    Raises:
        ValueError: As `split_command`.
        KeyError: If a placeholder has no value.
    """
    return [_PLACEHOLDER.sub(lambda match: values[match.group(1)], word) for word in split_command(text)]


def read_size(text: str) -> int:
    """Bytes of a size such as "500M", "20GB" (powers of 1000), "18GiB" (powers of 1024) or "1000000".

    Raises:
        ValueError: If it is no size.
    """
    match = _SIZE.match(text)
    if match is None or (match.group(3) and not match.group(2)):
        raise ValueError(f"{text!r} is no size")
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix.lower()) if prefix else 0
    scale: int = (1024 if binary else 1000) ** power
    return round(float(number) * scale)
