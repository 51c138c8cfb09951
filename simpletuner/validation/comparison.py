"""Videos of one prompt on one picture: frames of the base model above those of the trained one, or step under step.

All start from the same noise, so what differs is what was learnt. Works on frames and files; knows nothing of models.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simpletuner.core.files import write_atomic
from simpletuner.data.fonts import Font, find_font
from simpletuner.validation.video_file import count_frames, read_frames

_COLUMN_WIDTH_PX, _GAP_PX, _MARGIN_PX, _TEXT_PX = 224, 6, 16, 15
_LINE_PX = _TEXT_PX + 7
_PAPER, _INK, _FAINT = (250, 250, 248), (30, 30, 34), (110, 110, 118)
MOST_ROWS = 12  # steps on one picture; of more, some are left out evenly


@dataclass(frozen=True)
class Row:
    """One row of a picture: what stands above it, and its tiles (None leaves a place empty)."""

    title: str
    tiles: Sequence[Image.Image | None]


def compare_videos(base: Path, adapter: Path, path: Path, *, label: str, columns: int = 6) -> None:
    """Read two videos of one prompt and write their comparison as a PNG at `path`.

    Args:
        base: Video of the untouched model.
        adapter: Video of the trained model.
        label: What the lower row shows, such as "step 500".
        columns: Moments shown, spread evenly; fewer for shorter videos.

    Raises:
        OSError: If a video is missing.
        ValueError: If a file holds no video.
        UserError: If the disk is full or closed to writing (exit code 6).
    """
    draw_course([("before: base model", base), (f"after: {label}", adapter)], path, columns=columns)


def draw_course(videos: Sequence[tuple[str, Path]], path: Path, *, columns: int = 6) -> None:
    """Write a PNG at `path` with a row of evenly spaced frames per video, each moment labelled with its time.

    Args:
        videos: Title and file of each row; of more than `MOST_ROWS` the first, the last and some between are shown.
        columns: Moments shown; the shortest video decides where they lie.

    Raises:
        OSError: If a video is missing.
        ValueError: If a file holds no video.
        UserError: If the disk is full or closed to writing (exit code 6).
    """
    chosen = [videos[place] for place in spread(len(videos), MOST_ROWS)]
    moments = spread(min(count_frames(file) for _, file in chosen), columns)
    rows, rate = [], 0.0
    for title, file in chosen:
        frames, rate = read_frames(file, moments)
        rows.append(Row(title, [Image.fromarray(frame) for frame in frames]))
    below = [f"{moment / rate:.2f} s" for moment in moments] if rate > 0 else []
    write_atomic(path, draw_rows(rows, below=below))


def draw_grid(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Path | None]]], path: Path) -> None:
    """Write a PNG at `path` of still pictures: steps as rows, prompts and sizes as columns.

    Args:
        columns: What stands above each column.
        rows: Title of each row, and a picture per column; one that is missing leaves its place empty.

    Raises:
        UserError: If the disk is full or closed to writing (exit code 6).
    """
    chosen = [rows[place] for place in spread(len(rows), MOST_ROWS)]
    write_atomic(
        path, draw_rows([Row(title, [_open(file) for file in files]) for title, files in chosen], above=columns)
    )


def draw_rows(rows: Sequence[Row], *, above: Sequence[str] = (), below: Sequence[str] = ()) -> bytes:
    """PNG bytes of rows of tiles, each row under its title.

    Args:
        rows: At least one, with equally many tiles; tiles of one column are drawn equally wide.
        above, below: What stands over and under each column; nothing where empty.
    """
    count = max(len(row.tiles) for row in rows)
    heights = [
        max((round(_COLUMN_WIDTH_PX * tile.height / tile.width) for tile in row.tiles if tile is not None), default=60)
        for row in rows
    ]
    width = 2 * _MARGIN_PX + count * _COLUMN_WIDTH_PX + (count - 1) * _GAP_PX
    height = 2 * _MARGIN_PX + sum(heights) + len(rows) * _LINE_PX + (bool(above) + bool(below)) * _LINE_PX
    sheet = Image.new("RGB", (width, height), _PAPER)
    brush = ImageDraw.Draw(sheet)
    font = find_font("".join(above), _TEXT_PX) or ImageFont.load_default(_TEXT_PX)

    def left_of(column: int) -> int:
        return _MARGIN_PX + column * (_COLUMN_WIDTH_PX + _GAP_PX)

    top = _MARGIN_PX
    for column, text in enumerate(above):
        brush.text((left_of(column), top), _fitting(text, brush, font), _FAINT, font)
    top += _LINE_PX * bool(above)
    for row, row_height in zip(rows, heights, strict=True):
        brush.text((_MARGIN_PX, top), row.title, _INK, font)
        for column, tile in enumerate(row.tiles):
            if tile is not None:
                size = (_COLUMN_WIDTH_PX, round(_COLUMN_WIDTH_PX * tile.height / tile.width))
                sheet.paste(tile.resize(size, Image.Resampling.LANCZOS), (left_of(column), top + _LINE_PX))
        top += _LINE_PX + row_height
    for column, text in enumerate(below):
        brush.text((left_of(column), top + 4), text, _FAINT, font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` positions at even distances, first and last included."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(wanted, count)).round())]


def _open(path: Path | None) -> Image.Image | None:
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError):  # removed or damaged by hand
        return None


def _fitting(text: str, brush: ImageDraw.ImageDraw, font: Font) -> str:
    if brush.textlength(text, font) <= _COLUMN_WIDTH_PX:
        return text
    while text and brush.textlength(f"{text}…", font) > _COLUMN_WIDTH_PX:
        text = text[:-1]
    return f"{text}…"
