"""Videos as files that any player shows: H.264 mp4, and PNG for stills and posters.

Knows frames, sizes and rates; nothing of models, prompts or runs.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video import VideoStream
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from simpletuner.core.files import staged_file, write_atomic

Frames = NDArray[np.uint8]
Seen = TypeVar("Seen")

_ENCODING = {
    "preset": "medium",
    # Visually lossless for sample videos, at about twice the size of the default of 23.
    "crf": "17",
    # Without it x264 picks algorithms by the machine and by where its buffers happen to lie: equal
    # frames then give different files from one call to the next.
    "x264-params": "cpu-independent=1",
}
# The one name under which both mp4 players and readers of PNG show a text of any length.
_RECIPE = "comment"
_BT709 = 1  # ITU-T H.273 code of primaries, transfer and matrix alike


def write_video(path: Path, frames: Frames, frame_rate: float, recipe: Mapping[str, Any] | None = None) -> None:
    """Write frames uint8 [F, H, W, 3] (RGB) as an mp4 that plays at `frame_rate` frames per second.

    One frame becomes a PNG instead; `path` must then end in ".png". The file appears complete or
    not at all. `recipe`, how the video was made (JSON values), travels inside: see `read_recipe`.

    Raises:
        ValueError: If the frames have another shape, an odd size, or no rate.
        RuntimeError: If the encoder fails.
        UserError: If the disk is full or closed to writing (exit code 6).
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"a video needs frames uint8 [F, H, W, 3], not {frames.dtype} {frames.shape}")
    if len(frames) == 1:
        write_still(path, frames[0], recipe)
        return
    if frame_rate <= 0 or frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"an mp4 needs even sizes and a rate, not {frames.shape[2]}x{frames.shape[1]} at {frame_rate}")
    with staged_file(path) as staging:
        _encode(staging, frames, frame_rate, _as_text(recipe))


def write_still(path: Path, frame: Frames, recipe: Mapping[str, Any] | None = None) -> None:
    """Write one frame uint8 [H, W, 3] as a PNG, with how it was made inside.

    Raises:
        UserError: If the disk is full or closed to writing (exit code 6).
    """
    buffer = io.BytesIO()
    texts = PngImagePlugin.PngInfo()
    if recipe:
        texts.add_itxt(_RECIPE, _as_text(recipe))
    Image.fromarray(frame).save(buffer, format="PNG", pnginfo=texts)
    write_atomic(path, buffer.getvalue())


def read_video(path: Path) -> tuple[Frames, float]:
    """Frames uint8 [F, H, W, 3] (RGB) and frames per second of an mp4, or of a PNG with rate 0.

    Raises:
        OSError: If the file is missing.
        ValueError: If it holds no picture.
    """
    if path.suffix == ".png":
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))[None], 0.0

    def read(container: InputContainer, stream: VideoStream) -> tuple[Frames, float]:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), float(stream.average_rate or 0)

    return _looked_at(path, read)


def count_frames(path: Path) -> int:
    """Frames of an mp4 by its header, 1 for a PNG.

    Raises:
        OSError: If the file is missing.
        ValueError: If it holds no video.
    """
    if path.suffix == ".png":
        return 1
    return _looked_at(path, lambda container, stream: int(stream.frames))


def read_frames(path: Path, places: Sequence[int]) -> tuple[Frames, float]:
    """Like `read_video`, of the frames at `places` (ascending, from 0) alone: [len(places), H, W, 3] and the rate.

    Raises:
        OSError: If the file is missing.
        ValueError: If it has no such frame.
    """
    if path.suffix == ".png":
        return read_video(path)
    wanted = set(places)

    def pick(container: InputContainer, stream: VideoStream) -> tuple[Frames, float]:
        decoded = itertools.islice(container.decode(stream), max(wanted) + 1)
        kept = [frame.to_ndarray(format="rgb24") for place, frame in enumerate(decoded) if place in wanted]
        if len(kept) < len(wanted):
            raise ValueError(f"'{path}' has fewer than {max(wanted) + 1} frames")
        return np.stack(kept), float(stream.average_rate or 0)

    return _looked_at(path, pick)


def _looked_at(path: Path, look: Callable[[InputContainer, VideoStream], Seen]) -> Seen:
    try:
        with av.open(str(path)) as container:
            return look(container, container.streams.video[0])
    except (FFmpegError, IndexError) as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"'{path}' holds no video ({error})") from error


def read_recipe(path: Path) -> dict[str, Any]:
    """How a video or still was made, as `write_video` was told; empty where the file does not say.

    Raises:
        OSError: If the file is missing.
        ValueError: If it is no video and no picture.
    """
    if path.suffix == ".png":
        with Image.open(path) as image:
            text = str(image.info.get(_RECIPE, ""))
    else:
        try:
            with av.open(str(path)) as container:
                text = container.metadata.get(_RECIPE, "")
        except FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise ValueError(f"'{path}' holds no video ({error})") from error
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _as_text(recipe: Mapping[str, Any] | None) -> str:
    return json.dumps(recipe, ensure_ascii=False) if recipe else ""


def _encode(path: Path, frames: Frames, frame_rate: float, recipe: str = "") -> None:
    # Rates such as 23.976 and 29.97 are fractions over 1001.
    rate = Fraction(frame_rate).limit_denominator(1001)
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
            if recipe:
                container.metadata[_RECIPE] = recipe
            stream = container.add_stream("libx264", rate=rate, options=_ENCODING)
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
            context = stream.codec_context
            # Untagged files are shown in other colours by different players.
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = ColorRange.MPEG
            reformatter = VideoReformatter()
            for number, frame in enumerate(frames):
                picture = reformatter.reformat(
                    av.VideoFrame.from_ndarray(frame, format="rgb24"),
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                )
                picture.pts, picture.time_base = number, 1 / rate
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    except FFmpegError as error:
        if error.errno in errno.errorcode:  # the system's own number: a full disk, for one
            raise OSError(error.errno, error.strerror) from error
        raise RuntimeError(f"the video could not be encoded ({error})") from error
