"""Before and after on one picture: frames of the base model above those of the trained one.

Both videos start from the same noise, so what differs is what was learnt. Works on frames and
files; knows nothing of models.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simpletuner.core.files import write_atomic
from simpletuner.validation.video_file import Frames, read_video

_COLUMN_WIDTH_PX, _GAP_PX, _MARGIN_PX, _TEXT_PX = 224, 6, 16, 15
_PAPER, _INK, _FAINT = (250, 250, 248), (30, 30, 34), (110, 110, 118)


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
    before, rate = read_video(base)
    after, _ = read_video(adapter)
    write_atomic(path, draw_comparison(before, after, rate, label=label, columns=columns))


def draw_comparison(before: Frames, after: Frames, frame_rate: float, *, label: str, columns: int = 6) -> bytes:
    """PNG bytes of two rows of evenly spaced frames, each moment labelled with its time.

    Args:
        before, after: Frames uint8 [F, H, W, 3]; the shorter video decides the moments.
        frame_rate: Frames per second for the time labels; 0 shows none.
        label: What the lower row shows.
        columns: Most moments shown.
    """
    moments = spread(min(len(before), len(after)), columns)
    height = round(_COLUMN_WIDTH_PX * before.shape[1] / before.shape[2])
    line = _TEXT_PX + 7
    size = (
        2 * _MARGIN_PX + len(moments) * _COLUMN_WIDTH_PX + (len(moments) - 1) * _GAP_PX,
        2 * _MARGIN_PX + 2 * (height + line) + line,
    )
    sheet = Image.new("RGB", size, _PAPER)
    brush = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT_PX)
    for row, (title, frames) in enumerate((("before: base model", before), (f"after: {label}", after))):
        top = _MARGIN_PX + row * (height + line)
        brush.text((_MARGIN_PX, top), title, _INK, font)
        for column, moment in enumerate(moments):
            left = _MARGIN_PX + column * (_COLUMN_WIDTH_PX + _GAP_PX)
            tile = Image.fromarray(frames[moment]).resize((_COLUMN_WIDTH_PX, height), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left, top + line))
            if row == 1 and frame_rate > 0:
                brush.text((left, top + line + height + 4), f"{moment / frame_rate:.2f} s", _FAINT, font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` positions at even distances, first and last included."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(wanted, count)).round())]
