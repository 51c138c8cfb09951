"""The user's comment in the metadata of an adapter (`modelspec_comment`): text with places to fill.

What a published file says must not give away a secret of this machine, so variables whose names sound
like one are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from simpletuner.core.catalog import did_you_mean

PLACES = ("current_step", "current_epoch", "timestamp")
_PLACE = re.compile(r"\{(?:env:(?P<variable>[^{}]*)|(?P<name>[A-Za-z_]\w*))\}")
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)


def read_comment(written: Any) -> str:
    """The comment as one text.

    Raises:
        ValueError: If it is no text or list of texts, or holds a place that cannot be filled.
    """
    lines = written if isinstance(written, list) else [written]
    if not all(isinstance(line, str) for line in lines):
        raise ValueError("It is a text, or a list of lines. Put each line between quotes")
    text = "\n".join(lines)
    for found in _PLACE.finditer(text):
        if found["variable"] is not None and _SECRET.search(found["variable"]):
            raise ValueError(
                f"{{env:{found['variable']}}} sounds like a secret, and the comment is published with the adapter. "
                "Use a variable of another name"
            )
        if found["name"] is not None and found["name"] not in PLACES:
            near = did_you_mean(found["name"], list(PLACES))
            known = ", ".join(f"{{{name}}}" for name in (*PLACES, "env:NAME"))
            raise ValueError(f"{{{found['name']}}} is no place to fill. Known: {known}. {near}".rstrip())
    return text


def fill_comment(written: Any, values: Mapping[str, object], variables: Mapping[str, str]) -> str:
    """The comment with every place filled; an environment variable that is not set leaves nothing."""

    def fill(found: re.Match[str]) -> str:
        if found["variable"] is not None:
            return variables.get(found["variable"], "")
        return str(values[found["name"]])

    return _PLACE.sub(fill, read_comment(written))
