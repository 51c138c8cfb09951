"""Previews: small animated pictures of a video while it is being denoised, told as events.

At every n-th denoising step the clean latents that the model expects (x - sigma * velocity) are painted by the
cheapest decoder there is. A preview that fails costs one warning and no video: previews are then off for the run.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from simpletuner.core.errors import UserError
from simpletuner.core.files import write_atomic
from simpletuner.events.types import Event, Noticed, PreviewGenerated
from simpletuner.models.family import GenerationStep
from simpletuner.validation.preview_decoders import Pictures, PreviewDecoder
from simpletuner.validation.video_file import Frames

_LONGEST_PX = 256
_PX_PER_COLOUR = 4  # no painted colour is drawn larger: more pixels would show nothing more, and cost
_COLOURS = 64
_PATTERN = "*_preview_*.gif"
_FAULTS = (RuntimeError, ValueError, OSError, UserError)


@dataclass(frozen=True)
class PreviewedVideo:
    """The video that is being made.

    Attributes:
        step: Optimizer steps done.
        weights: What the model wears.
        nickname, prompt: Its prompt.
        width, height: Pixels of the video.
        frame_rate: Frames per second of the video.
        name: Its file name.
        number: Which of several videos of one prompt and size it is, from 1.
    """

    step: int
    weights: Literal["base", "adapter", "ema"]
    nickname: str
    prompt: str
    width: int
    height: int
    frame_rate: float
    name: str
    number: int = 1


class Previewer:
    """Makes the previews of a run: painted where they are asked for, drawn and written on a thread of its own."""

    def __init__(self, decoder: PreviewDecoder, folder: Path, every: int, emit: Callable[[Event], None]) -> None:
        """
        Args:
            decoder: Paints latents.
            folder: Where the pictures go; those of earlier validations are removed from it.
            every: Denoising steps from one preview to the next.
            emit: Receives a `PreviewGenerated` per preview, and one warning if previews fail; from another thread.
        """
        self._decoder, self._folder, self._every, self._emit = decoder, folder, every, emit
        self._step: int | None = None
        self._worker = ThreadPoolExecutor(1, "previews")
        self._pending: list[Future[None]] = []
        self.is_on = True

    def look(self, video: PreviewedVideo, step: GenerationStep) -> None:
        """Make a preview if it is time for one."""
        if not self.is_on or step.number % self._every:
            return
        try:
            pictures = self._decoder.paint(step.clean_latents)
        except _FAULTS as error:
            self._switch_off(error)
            return
        told = PreviewGenerated(
            video.step, video.weights, video.nickname, video.prompt, video.width, video.height, step.number, step.total,
            step.sigma, str(self._folder / f"{Path(video.name).stem}_preview_{step.number:03d}.gif"), video.number,
        )  # fmt: skip
        self._pending.append(self._worker.submit(self._draw, told, pictures, video.frame_rate))

    def wait(self) -> None:
        """Until everything that was looked at is told."""
        pending, self._pending = self._pending, []
        for drawing in pending:
            drawing.result()

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown()

    def _draw(self, told: PreviewGenerated, pictures: Pictures, frame_rate: float) -> None:
        if not self.is_on:
            return
        try:
            self._forget_earlier(told.step)
            write_atomic(Path(told.path), draw_preview(pictures, told.width, told.height, frame_rate))
        except _FAULTS as error:
            self._switch_off(error)
        else:
            self._emit(told)

    def _switch_off(self, error: Exception) -> None:
        self.is_on = False
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        self._emit(Noticed("warning", f"previews are off from here on: {first}. The videos are made as before."))

    def _forget_earlier(self, step: int) -> None:
        """Remove the previews of earlier validations: their videos are finished, and days of them would fill disks."""
        if step == self._step:
            return
        for path in self._folder.glob(_PATTERN):
            path.unlink(missing_ok=True)
        self._step = step


def draw_preview(pictures: Pictures, width: int, height: int, frame_rate: float) -> bytes:
    """A GIF that repeats for ever, with the shape of the video and at its speed.

    Args:
        pictures: What was painted.
        width, height: Pixels of the video; the preview is not larger, at most 256 px long, and at most 4 times what
            was painted.
        frame_rate: Frames per second of the video.
    """
    painted = max(pictures.frames.shape[1:3])
    scale = min(1.0, min(_LONGEST_PX, _PX_PER_COLOUR * painted) / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    images = [Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in pictures.frames]
    palette = _shared_palette(pictures.frames)
    drawn = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    milliseconds = max(20, round(1000 * pictures.frames_apart / frame_rate / 10) * 10)  # GIF counts hundredths
    # Looking for a smaller palette would take longer than all the rest.
    drawn[0].save(
        buffer, format="GIF", save_all=True, append_images=drawn[1:], duration=milliseconds, loop=0, disposal=1,
        optimize=False,
    )  # fmt: skip
    return buffer.getvalue()


def _shared_palette(frames: Frames) -> Image.Image:
    """One palette for all pictures, so that still parts keep their colours."""
    thinned = max(1, max(frames.shape[1:3]) // _LONGEST_PX * 2)
    seen = np.concatenate(list(frames[:, ::thinned, ::thinned]))
    return Image.fromarray(seen).quantize(_COLOURS, Image.Quantize.FASTOCTREE)
