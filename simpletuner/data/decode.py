"""Decodes exactly the planned frames of a file: seek, decode, scale, turn, cut.

Only the picture on show and the frames asked for are in memory, however long the file is. Which
moments and which window are taken was decided in `geometry.py`; encoding to latents comes next
(`caching/latents.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Colorspace, VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

from simpletuner.data.probe import open_clip, refuse_unscaled, sample_aspect, unusable
from simpletuner.data.sample import CropPlan, DamagedMedia, MediaInfo, Sample, ShortMedia, UnusableMedia
from simpletuner.data.storage import Storage
from simpletuner.data.tone import BT709_PRIMARIES, HDR_TRANSFERS, to_standard_range

if TYPE_CHECKING:
    from torch import Tensor

Frames = NDArray[np.uint8]

# Containers whose seek finds a true key frame at a true time; others (gif, avi) are read from their beginning.
SEEKABLE = ("mov", "matroska")
# Several clips are decoded at once; each with a thread per core would only fill memory with frames.
DECODER_THREADS = 2
# A key frame may be shown later than where its index says (reordering); then ask for an earlier one.
SEEK_MARGINS_SECONDS = (0.5, 5.0)
# Filters of the scaler cover 6 source pixels times the ratio and may not have more than 256 taps.
LARGEST_SCALER_RATIO = 16
# Lanczos with full chroma and exact rounding: SWS_LANCZOS, _FULL_CHR_H_INT, _FULL_CHR_H_INP and _ACCURATE_RND of
# FFmpeg's swscale.h, as numbers because PyAV names the last three only from version 18 on.
SCALER = 0x200 | 0x2000 | 0x4000 | 0x40000
# Untagged YUV: players take BT.709 from this height up and BT.601 below.
HD_HEIGHT = 720
BT2020 = 9  # ITU-T H.273 matrix coefficients; what high dynamic range without a tag is coded by
UNTAGGED_COLORSPACES = (2, 3)  # ITU-T H.273: unspecified, reserved
SHAPE_SLACK = 0.01  # by how much a picture's shape may differ from the planned one, as a share
TRANSPARENT_SHOWN_ON = (255, 255, 255)
GREY_16_PER_8 = 257  # 65535 / 255


class _SeekTooLateError(Exception):
    """The picture found by seeking comes after the wanted moment."""


def decode_sample(storage: Storage, sample: Sample) -> Frames:
    """All planned frames of `sample`, a file of `storage`: uint8 [F, H, W, 3], RGB.

    Raises:
        UnusableMedia: If the file is damaged, changed, or has fewer frames than its header promised.
    """
    return decode_frames(storage, sample, range(sample.frames.num_frames))


def decode_frames(storage: Storage, sample: Sample, indices: Sequence[int]) -> Frames:
    """The planned frames number `indices` (ascending, from 0) of `sample`: uint8 [len(indices), H, W, 3]."""
    _refuse_changed(storage, sample)
    if sample.info.kind == "image":
        return np.stack([_decode_image(storage, sample)] * len(indices))
    try:
        for margin in SEEK_MARGINS_SECONDS:
            try:
                return _decode_clip(storage, sample, indices, sample.frames.start_seconds - margin)
            except _SeekTooLateError:
                continue
        return _decode_clip(storage, sample, indices, 0.0)
    except FFmpegError as error:
        raise unusable(f"damaged: the pictures cannot be decoded ({error.strerror})", error) from error


def frames_to_pixels(frames: Frames) -> Tensor:
    """Frames uint8 [F, H, W, 3] -> pixels float32 [3, F, H, W] in [-1, 1]: 0 is -1 and 255 is +1."""
    import torch  # here, so that clips are looked at without it

    # One pass over a fresh tensor: permuting views would leave the layout of the frames in it.
    pixels = torch.empty((3, *frames.shape[:3]), dtype=torch.float32)
    pixels.copy_(torch.from_numpy(frames).permute(3, 0, 1, 2))
    return pixels.div_(127.5).sub_(1.0)


def _refuse_changed(storage: Storage, sample: Sample) -> None:
    now = storage.stat(sample.path)
    if (now.size_bytes, now.version) != (sample.info.size_bytes, sample.info.version):
        raise UnusableMedia("the file has changed since it was scanned; start again to use its new content")


# Clips ------------------------------------------------------------------------------------------


def _decode_clip(storage: Storage, sample: Sample, indices: Sequence[int], seek_seconds: float) -> Frames:
    plan, info = sample.frames, sample.info
    # A trained frame is the picture on show in the middle of its time: time stamps rounded to
    # milliseconds cannot move it to a neighbour, and a clip at its own rate gives each frame once.
    half = 0.5 / max(info.frame_rate, plan.frame_rate)
    moments = [plan.start_seconds + index / plan.frame_rate + half for index in indices]
    frames = np.empty((len(moments), sample.crop.height, sample.crop.width, 3), dtype=np.uint8)
    with open_clip(storage, sample.path) as (container, stream):
        timed = timed_frames(storage, sample.path, container, stream, seek_seconds, info.frame_rate)
        cutter = _FrameCutter(sample.crop, info, sample_aspect(stream))
        filled, end = _fill(frames, moments, timed, cutter, half / 2)
    if filled < len(moments):
        raise _shortness(info, end, f"{filled} of {len(moments)} planned frames could be decoded")
    return frames


def _shortness(info: MediaInfo, end: float, outcome: str) -> DamagedMedia:
    reason = (
        f"declares {info.num_frames} frames ({info.duration_seconds:.2f} s), but its pictures end at {end:.2f} s: "
        + outcome
    )
    num_frames = round(end * info.frame_rate)
    return ShortMedia(reason, num_frames, end) if num_frames >= 1 else DamagedMedia(reason)


def _fill(
    frames: Frames,
    moments: Sequence[float],
    timed: Iterator[tuple[float, float, Any]],
    cutter: _FrameCutter,
    slack: float,
) -> tuple[int, float]:
    """Write the picture on show at each moment; gives how many were written and when the pictures end."""
    filled, end, held = 0, 0.0, None
    for start, stop, frame in timed:
        if held is None and start > moments[0]:
            raise _SeekTooLateError
        filled = _write_held(frames, moments, filled, held, cutter, before=start)
        if filled == len(moments):
            return filled, start
        held, end = frame, stop
    return _write_held(frames, moments, filled, held, cutter, before=end + slack), end


def _write_held(
    frames: Frames, moments: Sequence[float], filled: int, held: Any, cutter: _FrameCutter, *, before: float
) -> int:
    """Write `held` for every moment earlier than `before`; its picture is converted only once."""
    first = filled
    while held is not None and filled < len(moments) and moments[filled] < before:
        frames[filled] = cutter.cut(held) if filled == first else frames[first]
        filled += 1
    return filled


def _stored_stamps(storage: Storage, path: str) -> Sequence[int]:
    """Times of an AVI's pictures in the order in which they are shown, in ticks of its time base.

    AVI stores no time of showing, only the decoding order and empty places. FFmpeg guesses the rest, wrongly for
    H.264 with reordered pictures (1, 3, 4, 2); but the decoder gives them in order, so the k-th picture has the
    k-th smallest time.
    """
    with open_clip(storage, path) as (container, stream):
        return sorted(packet.dts for packet in container.demux(stream) if packet.size and packet.dts is not None)


def timed_frames(
    storage: Storage, path: str, container: Any, stream: Any, seek_seconds: float, frame_rate: float
) -> Iterator[tuple[float, float, Any]]:
    """Decoded pictures with the seconds, from the clip's first picture, at which each begins and ends.

    Args:
        storage: Where the clip lies.
        path: The clip.
        container: What `open_clip` gave for it.
        stream: Likewise.
        seek_seconds: Pictures from a key frame at or before this moment on; 0 and below for all.
        frame_rate: Mean frames per second, for pictures that do not say how long they are shown.
    """
    stored = _stored_stamps(storage, path) if container.format.name == "avi" else ()
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = DECODER_THREADS
    tick = float(stream.time_base)
    zero = None
    if seek_seconds > 0 and any(name in container.format.name for name in SEEKABLE):
        zero = _first_stamp(container, stream)
        container.seek(zero + math.floor(seek_seconds / tick), stream=stream, backward=True)
    expected = 0
    for number, frame in enumerate(container.decode(stream)):
        if stored:
            stamp = stored[number] if number < len(stored) else expected
        else:
            stamp = frame.pts if frame.pts is not None else expected
        zero = stamp if zero is None else zero
        length = frame.duration or round(1 / (frame_rate * tick))
        expected = stamp + length
        yield (stamp - zero) * tick, (expected - zero) * tick, frame


def _first_stamp(container: Any, stream: Any) -> int:
    """Time stamp of the picture shown first, which a header's start time need not be."""
    first = next(iter(container.decode(stream)), None)
    return int(first.pts) if first is not None and first.pts is not None else 0


# Pictures ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Orientation:
    """How a stored picture is turned and mirrored to be shown."""

    swaps_axes: bool = False
    flips_columns: bool = False
    flips_rows: bool = False

    def apply(self, picture: Frames) -> Frames:
        if self.swaps_axes:
            picture = picture.swapaxes(0, 1)
        rows = slice(None, None, -1) if self.flips_rows else slice(None)
        columns = slice(None, None, -1) if self.flips_columns else slice(None)
        return picture[rows, columns]


def _orientation(frame: Any) -> _Orientation:
    """Read the display matrix [a b u; c d v; x y w]: a stored point (x, y) is shown at (ax + cy, bx + dy)."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return _Orientation()
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), dtype=np.int32).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return _Orientation(False, a < 0, d < 0)
    return _Orientation(True, c < 0, b < 0)


class _FrameCutter:
    """Scales, turns and cuts the frames of one clip; keeps the scaler's tables between frames."""

    def __init__(self, crop: CropPlan, info: MediaInfo, pixel_aspect: float) -> None:
        self._crop = crop
        self._info = info
        self._pixel_aspect = pixel_aspect
        self._orientations: dict[int, _Orientation] = {}
        self._reformatter = VideoReformatter()

    def cut(self, frame: Any) -> Frames:
        """Window uint8 [H, W, 3] of a decoded frame."""
        orientation = self._orientation_of(frame)
        width, height = self._crop.scaled_width, self._crop.scaled_height
        shown = (frame.width * self._pixel_aspect, frame.height)
        _refuse_other_shape(shown[::-1] if orientation.swaps_axes else shown, self._info)
        if orientation.swaps_axes:
            width, height = height, width
        ratio = max(frame.width / width, frame.height / height)
        curve = HDR_TRANSFERS.get(int(frame.color_trc))
        if curve:
            scaled: Frames = self._from_high_range(frame, curve, width, height, ratio)
        elif _is_plain_yuv(frame) and ratio <= LARGEST_SCALER_RATIO:
            guess = Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601
            scaled = self._to_rgb(frame, width, height, "rgb24", guess).to_ndarray()
        else:
            scaled = _resize(_picture_of(frame), width, height)
        return _window(orientation.apply(scaled), self._crop)

    def _orientation_of(self, frame: Any) -> _Orientation:
        """The frame's orientation, read in full only when its angle is a new one.

        A frame and its side data refer to each other (PyAV 18), so that frames which were asked for
        theirs pile up until Python looks for cycles: 3 MB each at 1080p.
        """
        angle = int(frame.rotation)
        if angle not in self._orientations:
            self._orientations[angle] = _orientation(frame)
        return self._orientations[angle]

    def _from_high_range(self, frame: Any, curve: str, width: int, height: int, ratio: float) -> Frames:
        """Scaled as it is coded, then brought to standard range; what the scaler cannot shrink at once, afterwards."""
        size = (width, height) if ratio <= LARGEST_SCALER_RATIO else (frame.width, frame.height)
        coded = self._to_rgb(frame, size[0], size[1], "rgb48le", BT2020).to_ndarray()
        shown = to_standard_range(coded, curve, wide=int(frame.color_primaries) != BT709_PRIMARIES)
        return shown if size == (width, height) else _resize(Image.fromarray(shown), width, height)

    def _to_rgb(self, frame: Any, width: int, height: int, pixel_format: str, guess: int) -> Any:
        """The frame as RGB; `guess` is the matrix of a frame that names none."""
        untagged = frame.colorspace in UNTAGGED_COLORSPACES and not frame.format.is_rgb
        return self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format=pixel_format,
            interpolation=SCALER,
            src_colorspace=guess if untagged else None,
            dst_color_range="JPEG",
            threads=1,
        )


def _refuse_other_shape(shown: tuple[float, float], info: MediaInfo) -> None:
    """Refuse a picture whose shape is not the planned one: it would be squeezed into the crop.

    A table of sizes may be wrong, and a clip may change its shape half-way.
    """
    width, height = shown
    # The planned size is whole pixels, so that a small picture is off by more.
    if abs(math.log(width * info.height / (height * info.width))) > SHAPE_SLACK + 1 / min(info.width, info.height):
        raise UnusableMedia(
            f"a picture is {width:.0f}x{height:.0f} px, but {info.width}x{info.height} was planned by header or table"
        )


def _is_plain_yuv(frame: Any) -> bool:
    components = frame.format.components
    return not frame.format.is_rgb and not frame.format.has_palette and len(components) == 3


def _picture_of(frame: Any) -> Image.Image:
    """Any frame as an RGB picture at its own size, transparency shown on white."""
    has_alpha = any(component.is_alpha for component in frame.format.components) or frame.format.has_palette
    array = frame.to_ndarray(format="rgba" if has_alpha else "rgb24")
    return _flatten(Image.fromarray(array))


def _flatten(picture: Image.Image) -> Image.Image:
    refuse_unscaled(picture)
    if picture.mode.startswith("I;16"):
        picture = _grey_of_16_bits(picture)
    if picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, TRANSPARENT_SHOWN_ON)
        return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _grey_of_16_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits, which `Image.convert` would clip; a transparent value becomes alpha."""
    values = np.asarray(picture)
    grey = Image.fromarray(np.rint(values / GREY_16_PER_8).astype(np.uint8))
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _resize(picture: Image.Image, width: int, height: int) -> Frames:
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def _window(scaled: Frames, crop: CropPlan) -> Frames:
    return scaled[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def _decode_image(storage: Storage, sample: Sample) -> Frames:
    crop = sample.crop
    try:
        with storage.open(sample.path) as handle, Image.open(handle) as image:
            picture = _flatten(ImageOps.exif_transpose(image))
            _refuse_other_shape(picture.size, sample.info)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's readers report damage by all three
        raise unusable(f"damaged: the picture cannot be decoded ({error})", error) from error
    return _window(_resize(picture, crop.scaled_width, crop.scaled_height), crop)
