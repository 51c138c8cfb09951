"""Draws what the trainer sees: some trained frames of each sample, with its facts and caption, on one picture.

The frames go through the very decoder that feeds the encoder, so a wrong crop, turn or window shows. Frames that were
decoded from latents may stand below those of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from simpletuner.core.files import staged_file
from simpletuner.data.decode import Frames, decode_frames
from simpletuner.data.fonts import Font, find_font
from simpletuner.data.sample import Sample, Unfit, printable
from simpletuner.data.storage import Storage

FRAME_WIDTH_PX, FRAME_HEIGHT_PX = 176, 128
FRAMES_SHOWN = 3
GAP_PX, MARGIN_PX, TEXT_PX = 6, 20, 13
LINE_PX = TEXT_PX + 4
COLUMNS = 2
CAPTION_LINES = 2
CELL_WIDTH_PX = FRAMES_SHOWN * FRAME_WIDTH_PX + (FRAMES_SHOWN - 1) * GAP_PX
PAPER, INK, FAINT, MOUNT = (250, 250, 248), (30, 30, 34), (110, 110, 118), (226, 226, 222)
ALARM = (176, 32, 32)
NO_FONT = "(no font of this machine shows this text)"


@dataclass(frozen=True)
class Panel:
    """One sample on a sheet.

    Attributes:
        sample: What is shown.
        rows: Rows of up to three frames uint8 [F, H, W, 3], the source first.
        alarm: What is wrong with it; empty if nothing is.
    """

    sample: Sample
    rows: tuple[Frames, ...]
    alarm: str = ""


def draw_contact_sheet(samples: Sequence[Sample], storages: Mapping[str, Storage], path: Path, limit: int = 24) -> None:
    """Write a PNG at `path` with up to `limit` samples, spread evenly over all of them.

    Args:
        samples: What is trained.
        storages: Where the files of each data set lie, by its id.
        path: Where the picture goes; replaced if it exists.
        limit: Most samples shown.
    """
    chosen = spread(samples, limit)
    shown = f"{len(chosen)} of {len(samples)}" if len(chosen) < len(samples) else f"all {len(samples)}"
    title = f"What the trainer sees: {shown} samples; first, middle and last trained frame"
    draw_panels([_source_panel(sample, storages[sample.dataset]) for sample in chosen], title, path)


def draw_panels(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Write a PNG at `path` with one cell per panel; replaced if it exists."""
    columns = max(1, min(COLUMNS, len(panels)))
    rows = -(-len(panels) // columns)
    cell_height = _cell_height(panels)
    width = 2 * MARGIN_PX + columns * CELL_WIDTH_PX + (columns - 1) * MARGIN_PX
    height = 2 * MARGIN_PX + 2 * LINE_PX + rows * cell_height
    sheet = _Sheet(width, height)
    sheet.write(title, MARGIN_PX, MARGIN_PX, INK, width - 2 * MARGIN_PX)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        left = MARGIN_PX + column * (CELL_WIDTH_PX + MARGIN_PX)
        sheet.draw_panel(panel, left, MARGIN_PX + 2 * LINE_PX + row * cell_height, cell_height)
    with staged_file(path) as staging:
        sheet.picture.save(staging, format="PNG")


def shown_indices(num_frames: int, count: int = FRAMES_SHOWN) -> list[int]:
    """Numbers of up to `count` frames at even distances, the first and the last included."""
    last = num_frames - 1
    return sorted({place * last // max(1, count - 1) for place in range(count)})


def spread(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit` samples at even distances, the first included."""
    count = min(limit, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def tell_window(sample: Sample) -> str:
    """Which part of the source is trained: "1.20 to 4.20 s of 9.84 s"; empty for an image."""
    plan, info = sample.frames, sample.info
    if info.kind == "image":
        return ""
    end_seconds = plan.start_seconds + (plan.num_frames - 1) / plan.frame_rate
    return f"{plan.start_seconds:.2f} to {end_seconds:.2f} s of {info.duration_seconds:.2f} s"


def _source_panel(sample: Sample, storage: Storage) -> Panel:
    try:
        return Panel(sample, (decode_frames(storage, sample, shown_indices(sample.frames.num_frames)),))
    except Unfit as unusable:
        return Panel(sample, (), unusable.reason)


def _facts(sample: Sample) -> str:
    source = f"from {sample.info.width}x{sample.info.height}"
    if sample.info.kind == "image":
        return f"{sample.bucket} · {source}"
    return f"{sample.bucket} · {sample.frames.frame_rate:.4g} fps · {tell_window(sample)} · {source}"


def _cell_height(panels: Sequence[Panel]) -> int:
    picture_rows = max([1, *(len(panel.rows) for panel in panels)])
    return picture_rows * (FRAME_HEIGHT_PX + GAP_PX) + (2 + CAPTION_LINES) * LINE_PX + MARGIN_PX


class _Sheet:
    """A picture under work."""

    def __init__(self, width: int, height: int) -> None:
        self.picture = Image.new("RGB", (width, height), PAPER)
        self._brush = ImageDraw.Draw(self.picture)

    def write(
        self, text: str, left: int, top: int, colour: tuple[int, int, int], width_px: int = CELL_WIDTH_PX
    ) -> None:
        """One line of text, cut in its middle if it is wider than `width_px`."""
        font = find_font(text, TEXT_PX)
        text, font = (text, font) if font else (NO_FONT, _font())
        self._brush.text((left, top), self._shorten(text, font, width_px), colour, font)

    def draw_panel(self, panel: Panel, left: int, top: int, cell_height: int) -> None:
        for number, frames in enumerate(panel.rows):
            for place, frame in enumerate(frames):
                column = left + place * (FRAME_WIDTH_PX + GAP_PX)
                self._mount(Image.fromarray(frame), column, top + number * (FRAME_HEIGHT_PX + GAP_PX))
        if not panel.rows:
            self.write(panel.alarm, left, top + FRAME_HEIGHT_PX // 2, ALARM)
        baseline = top + cell_height - MARGIN_PX - (2 + CAPTION_LINES) * LINE_PX
        self.write(printable(panel.sample.name), left, baseline, INK)
        facts = f"{panel.alarm} · {_facts(panel.sample)}" if panel.rows and panel.alarm else _facts(panel.sample)
        self.write(facts, left, baseline + LINE_PX, ALARM if panel.alarm else FAINT)
        caption = panel.sample.captions[0]
        font = find_font(caption, TEXT_PX)
        lines = self._wrap(caption, font) if font else [NO_FONT]
        for number, line in enumerate(lines):
            self._brush.text((left, baseline + (2 + number) * LINE_PX), line, FAINT, font or _font())

    def _mount(self, frame: Image.Image, left: int, top: int) -> None:
        """Paste a frame, shrunk or enlarged to fit, centred on its mount."""
        self._brush.rectangle((left, top, left + FRAME_WIDTH_PX - 1, top + FRAME_HEIGHT_PX - 1), fill=MOUNT)
        scale = min(FRAME_WIDTH_PX / frame.width, FRAME_HEIGHT_PX / frame.height)
        size = (max(1, round(frame.width * scale)), max(1, round(frame.height * scale)))
        place = (left + (FRAME_WIDTH_PX - size[0]) // 2, top + (FRAME_HEIGHT_PX - size[1]) // 2)
        self.picture.paste(frame.resize(size, Image.Resampling.LANCZOS), place)

    def _shorten(self, text: str, font: Font, width_px: int = CELL_WIDTH_PX) -> str:
        """The text on one line, cut in its middle so that a file's name and its ending both show."""
        text = " ".join(text.split())
        if self._fits(text, font, width_px):
            return text
        kept = len(text)
        while kept > 2 and not self._fits(_cut_middle(text, kept), font, width_px):
            kept -= 1
        return _cut_middle(text, kept)

    def _wrap(self, text: str, font: Font) -> list[str]:
        """The beginning of a caption on at most `CAPTION_LINES` lines; text without spaces breaks anywhere."""
        lines = [""]
        for word in _words(text):
            longer = f"{lines[-1]}{word}"
            if self._fits(longer.strip(), font):
                lines[-1] = longer
            elif len(lines) < CAPTION_LINES:
                lines.append(word)
            else:
                lines[-1] = self._shorten(lines[-1].rstrip() + " …", font)
                break
        return [self._shorten(line, font) for line in lines if line.strip()]

    def _fits(self, text: str, font: Font, width_px: int = CELL_WIDTH_PX) -> bool:
        return self._brush.textlength(text, font) <= width_px


def _font() -> Font:
    font = find_font("", TEXT_PX)
    assert font is not None  # the bundled one has every letter of an empty text
    return font


def _words(text: str) -> list[str]:
    """Pieces between which a line may break, each with the space after it: words, and single wide letters."""
    pieces: list[str] = []
    for word in text.split():
        start = 0
        for place, letter in enumerate(word):
            if letter >= "\u2e80":  # from here on: scripts written without spaces
                pieces += [word[start:place], letter]
                start = place + 1
        pieces.append(word[start:] + " ")
    return [piece for piece in pieces if piece]


def _cut_middle(text: str, kept: int) -> str:
    head = (kept + 1) // 2
    return f"{text[:head]}…{text[len(text) - (kept - head) :]}"
