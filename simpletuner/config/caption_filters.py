"""The items of `caption_filter_list`: what each removes or replaces, proved before anything is read.

An item is taken out as it stands and then once more as a regular expression; `s/A/B/` (or `s/A/B`)
puts B where A matches. `data/caption_rules.py` applies them; nothing here knows captions or files.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

FLAGS = {"i": re.IGNORECASE, "g": 0}  # every match is replaced anyway, so that `g` changes nothing
SLASH = re.compile(r"(?<!\\)/")


@dataclass(frozen=True)
class CaptionFilter:
    """One item.

    Attributes:
        written: The item itself.
        plain: Text removed as it stands; empty for a replacement.
        pattern: What is looked for.
        replacement: What stands in its place; may name groups as `\\1`.
    """

    written: str
    plain: str
    pattern: re.Pattern[str]
    replacement: str

    def apply(self, caption: str) -> str:
        """The caption after this item alone."""
        if self.plain:
            caption = caption.replace(self.plain, "")
        return self.pattern.sub(self.replacement, caption)


def parse_filter(item: str) -> CaptionFilter:
    """Read one item.

    Raises:
        ValueError: If it holds no regular expression; the text names the fault and its place.
    """
    parts = SLASH.split(item)
    if parts[0] != "s" or len(parts) < 3:
        return CaptionFilter(item, item, _compiled(item), "")
    flags = parts[3] if len(parts) == 4 else ""
    if len(parts) > 4 or any(flag not in FLAGS for flag in flags):
        raise ValueError(r"a replacement has the form s/A/B/ or s/A/B/i; write \/ for a slash inside A or B")
    looked_for, replacement = (part.replace(r"\/", "/") for part in parts[1:3])
    if not looked_for:
        raise ValueError("nothing stands between the first two slashes")
    pattern = _compiled(looked_for, sum(FLAGS[flag] for flag in set(flags)))
    try:
        pattern.sub(replacement, "")  # a fault of the replacement shows without a match
    except (re.error, IndexError) as error:
        raise ValueError(f"the replacement {replacement!r} is broken ({error})") from error
    return CaptionFilter(item, "", pattern, replacement)


def _compiled(text: str, flags: int = 0) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():  # about signs that a later Python may read otherwise
            warnings.simplefilter("ignore")
            return re.compile(text, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"it is no regular expression ({error})") from error
