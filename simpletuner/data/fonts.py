"""Fonts for the words on pictures: the bundled one, or one of the machine that has the letters of a text.

No font travels with the package: those with Chinese, Japanese or Korean letters take megabytes.
"""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# File names under which systems keep fonts with many scripts; Pillow looks for them in the system's font folders.
CANDIDATES = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "uming.ttc",
    "PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc", "Arial Unicode.ttf",
    "msyh.ttc", "simhei.ttf", "simsun.ttc", "DejaVuSans.ttf",
)  # fmt: skip
NO_GLYPH = "\uffff"  # a code that no font may fill; what is drawn for it is drawn for every missing letter
LETTERS_CHECKED = 400


def find_font(text: str, size_px: int) -> Font | None:
    """The first font that has every letter of `text`; None if no font of this machine has."""
    letters = {letter for letter in text[:LETTERS_CHECKED] if not letter.isspace()}
    return next((font for font in _fonts(size_px) if all(_has(font, letter) for letter in letters)), None)


@lru_cache(maxsize=8)
def _fonts(size_px: int) -> tuple[Font, ...]:
    fonts: list[Font] = [ImageFont.load_default(size_px)]
    for name in CANDIDATES:
        try:
            fonts.append(ImageFont.truetype(name, size_px))
        except OSError:  # not installed
            continue
    return tuple(fonts)


@lru_cache(maxsize=8192)
def _has(font: Font, letter: str) -> bool:
    missing, drawn = font.getmask(NO_GLYPH), font.getmask(letter)
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))
