"""Numbers of things, as people read them."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """Such as "1 clip", "2 clips", "1,200 cache entries"; `plural` is for nouns that do not just take an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
