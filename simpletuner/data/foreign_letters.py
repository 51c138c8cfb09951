"""Captions in letters that LTX-Video's text encoder does not know, and would read as one and the same blank."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from simpletuner.core.counting import counted
from simpletuner.data.sample import Sample, printable

# Scripts that are hardly in the vocabulary of T5 v1.1 (English web pages, some German, French, Romanian).
FOREIGN_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "CYRILLIC", "ARABIC", "HEBREW", "DEVANAGARI", "THAI")
FOREIGN_SHARE = 0.2  # of the letters
_SHOWN = 30  # characters


def is_foreign(character: str) -> bool:
    """Whether a letter is of one of those scripts."""
    return character > "\u036f" and unicodedata.name(character, "").startswith(FOREIGN_SCRIPTS)


def is_foreign_text(text: str) -> bool:
    """Whether so many letters of a text are foreign that it teaches little."""
    if text.isascii():
        return False
    letters = [character for character in text if character.isalpha()]
    return bool(letters) and sum(map(is_foreign, letters)) >= FOREIGN_SHARE * len(letters)


def tell_foreign(samples: Iterable[Sample]) -> str:
    """A sentence on the captions that the text encoder hardly reads; empty without such."""
    captions = [caption for sample in samples if not sample.part for caption in sample.captions]
    foreign = [caption for caption in captions if is_foreign_text(caption)]
    if not foreign:
        return ""
    shown = printable(" ".join(foreign[0].split()))
    example = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
    return (
        f"{counted(len(foreign), 'caption')} of {len(captions):,} in letters that the text encoder does not know, such "
        f"as '{example}': it reads English, and clips with other captions learn no words (`simpletuner data lint` "
        "names them)"
    )
