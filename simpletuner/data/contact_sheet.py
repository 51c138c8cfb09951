"""Draws what the trainer sees: first, middle and last trained frame of each sample, on one picture.

The frames go through the very decoder that feeds the encoder, so a wrong crop, turn or window shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simpletuner.core.files import staged_file
from simpletuner.data.decode import decode_frames
from simpletuner.data.sample import Sample, Unfit, printable
from simpletuner.data.storage import Storage

FRAME_WIDTH_PX, FRAME_HEIGHT_PX = 176, 128
GAP_PX, MARGIN_PX, TEXT_PX = 6, 20, 13
LINE_PX = TEXT_PX + 4
COLUMNS = 2
CAPTION_LINES = 2
CELL_WIDTH_PX = 3 * FRAME_WIDTH_PX + 2 * GAP_PX
CELL_HEIGHT_PX = FRAME_HEIGHT_PX + (2 + CAPTION_LINES) * LINE_PX + GAP_PX + MARGIN_PX
PAPER, INK, FAINT, MOUNT = (250, 250, 248), (30, 30, 34), (110, 110, 118), (226, 226, 222)
ALARM = (176, 32, 32)


def draw_contact_sheet(samples: Sequence[Sample], storages: Mapping[str, Storage], path: Path, limit: int = 24) -> None:
    """Write a PNG at `path` with up to `limit` samples, spread evenly over all of them.

    Args:
        samples: What is trained.
        storages: Where the files of each data set lie, by its id.
        path: Where the picture goes; replaced if it exists.
        limit: Most samples shown.
    """
    chosen = _spread(samples, limit)
    columns = max(1, min(COLUMNS, len(chosen)))
    rows = -(-len(chosen) // columns)
    width = 2 * MARGIN_PX + columns * CELL_WIDTH_PX + (columns - 1) * MARGIN_PX
    height = 2 * MARGIN_PX + 2 * LINE_PX + rows * CELL_HEIGHT_PX
    sheet = Image.new("RGB", (width, height), PAPER)
    brush = ImageDraw.Draw(sheet)
    shown = f"{len(chosen)} of {len(samples)}" if len(chosen) < len(samples) else f"all {len(samples)}"
    title = f"What the trainer sees: {shown} samples; first, middle and last trained frame"
    brush.text((MARGIN_PX, MARGIN_PX), title, INK, _font())
    for number, sample in enumerate(chosen):
        row, column = divmod(number, columns)
        left = MARGIN_PX + column * (CELL_WIDTH_PX + MARGIN_PX)
        top = MARGIN_PX + 2 * LINE_PX + row * CELL_HEIGHT_PX
        _draw_sample(sheet, brush, sample, storages[sample.dataset], left, top)
    with staged_file(path) as staging:
        sheet.save(staging, format="PNG")


def _spread(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit` samples at even distances, the first included."""
    count = min(limit, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def _draw_sample(
    sheet: Image.Image, brush: ImageDraw.ImageDraw, sample: Sample, storage: Storage, left: int, top: int
) -> None:
    last = sample.frames.num_frames - 1
    indices = sorted({0, last // 2, last})
    try:
        frames = decode_frames(storage, sample, indices)
    except Unfit as unusable:
        brush.text((left, top + FRAME_HEIGHT_PX // 2), _shorten(brush, unusable.reason), ALARM, _font())
        frames = np.empty((0, 1, 1, 3), dtype=np.uint8)
    for place, frame in enumerate(frames):
        _mount(sheet, brush, Image.fromarray(frame), left + place * (FRAME_WIDTH_PX + GAP_PX), top)
    baseline = top + FRAME_HEIGHT_PX + GAP_PX
    brush.text((left, baseline), _shorten(brush, printable(sample.name)), INK, _font())
    brush.text((left, baseline + LINE_PX), _shorten(brush, _facts(sample)), FAINT, _font())
    for number, line in enumerate(_wrap(brush, sample.captions[0])):
        brush.text((left, baseline + (2 + number) * LINE_PX), line, FAINT, _font())


def _facts(sample: Sample) -> str:
    plan, info = sample.frames, sample.info
    source = f"from {info.width}x{info.height}"
    if info.kind == "image":
        return f"{sample.bucket} · {source}"
    end_seconds = plan.start_seconds + (plan.num_frames - 1) / plan.frame_rate
    moments = f"{plan.start_seconds:.2f} to {end_seconds:.2f} s of {info.duration_seconds:.2f} s"
    return f"{sample.bucket} · {plan.frame_rate:.4g} fps · {moments} · {source}"


def _mount(sheet: Image.Image, brush: ImageDraw.ImageDraw, frame: Image.Image, left: int, top: int) -> None:
    """Paste a frame, shrunk or enlarged to fit, centred on its mount."""
    brush.rectangle((left, top, left + FRAME_WIDTH_PX - 1, top + FRAME_HEIGHT_PX - 1), fill=MOUNT)
    scale = min(FRAME_WIDTH_PX / frame.width, FRAME_HEIGHT_PX / frame.height)
    size = (max(1, round(frame.width * scale)), max(1, round(frame.height * scale)))
    place = (left + (FRAME_WIDTH_PX - size[0]) // 2, top + (FRAME_HEIGHT_PX - size[1]) // 2)
    sheet.paste(frame.resize(size, Image.Resampling.LANCZOS), place)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT_PX)


def _shorten(brush: ImageDraw.ImageDraw, text: str) -> str:
    """The text on one line, cut in its middle so that a file's name and its ending both show."""
    text = " ".join(text.split())
    if brush.textlength(text, _font()) <= CELL_WIDTH_PX:
        return text
    kept = len(text)
    while kept > 2 and brush.textlength(_cut_middle(text, kept), _font()) > CELL_WIDTH_PX:
        kept -= 1
    return _cut_middle(text, kept)


def _cut_middle(text: str, kept: int) -> str:
    head = (kept + 1) // 2
    return f"{text[:head]}…{text[len(text) - (kept - head) :]}"


def _wrap(brush: ImageDraw.ImageDraw, text: str) -> list[str]:
    """The beginning of a caption on at most `CAPTION_LINES` lines."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if brush.textlength(longer, _font()) <= CELL_WIDTH_PX:
            lines[-1] = longer
        elif len(lines) < CAPTION_LINES:
            lines.append(_shorten(brush, word))
        else:
            lines[-1] = _shorten(brush, lines[-1] + " …") if lines[-1] else "…"
            break
    return [line for line in lines if line]
