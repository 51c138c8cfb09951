"""Reads the header of a clip or picture: size as shown, exact frame count, true speed.

A file that cannot be trained raises `UnusableMedia` with a reason a person can act on; nothing here
decides which frames are trained (`geometry.py`) and no file is ever changed. Counting frames reads
packets, never pictures: only the first picture is decoded, because the turning of a clip, its
transfer curve and whether it decodes at all are known from there.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import av
from av.error import FFmpegError
from PIL import Image, UnidentifiedImageError

from simpletuner.data.sample import MediaInfo, Unfit
from simpletuner.data.storage import Storage, StoredFile
from simpletuner.events.types import Event, StageAdvanced, StageFinished, StageStarted

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tiff"})

# A decoded 16-megapixel frame is 50 MB of RGB and 8K video has 33 megapixels; beyond this a header
# of a few bytes could claim all memory of the machine.
LARGEST_PICTURE_MEGAPIXELS = 64
# Pixels this far from square are a damaged header, not a format anybody uses.
WIDEST_SAMPLE_ASPECT = 8.0
# Matroska rounds to milliseconds and an audio track may end a little after the picture.
MISSING_END_SECONDS = 0.5
PROBE_EVENTS = 200  # at most so many progress events per scan
PICTURE_FORMATS = ("_pipe", "image2")  # what FFmpeg calls still pictures
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273 transfer characteristics
UNSCALED_MODES = {"I": "32-bit whole numbers", "F": "32-bit floating-point numbers"}  # Pillow's modes
EXIF_ORIENTATION = 0x0112
EXIF_TURNS = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}  # degrees counter-clockwise


class UnusableMedia(Unfit):
    """The file is missing, damaged, or of a kind that cannot be trained."""


@dataclass(frozen=True)
class Timeline:
    """Frames and times of a video stream, by its index or by its packets."""

    num_frames: int
    duration_seconds: float


def probe(storage: Storage, path: str) -> MediaInfo:
    """Read what the file at `path` of `storage` holds; its content decides, not its extension.

    Raises:
        Unfit: If it is no readable clip or picture; the reason says what is wrong.
    """
    file = storage.stat(path)
    _check_beginning(storage, file)
    if PurePosixPath(path).suffix.lower() in IMAGE_EXTENSIONS:
        with contextlib.suppress(UnidentifiedImageError):
            return _probe_image(storage, file)
    return _probe_video(storage, file)


def probe_all(
    files: Sequence[tuple[Storage, str]], *, workers: int, emit: Callable[[Event], None]
) -> list[MediaInfo | Unfit]:
    """Probe many files in threads, answers in their order; a file that cannot be used gives its `Unfit`."""
    started = time.monotonic()
    emit(StageStarted("probe", "Reading headers", len(files), "files"))
    found: list[MediaInfo | Unfit] = [Unfit("not read")] * len(files)
    stride = max(1, len(files) // PROBE_EVENTS)
    with ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="probe") as pool:
        pending = {pool.submit(_probe_or_reason, *file): number for number, file in enumerate(files)}
        for done, future in enumerate(as_completed(pending), start=1):
            found[pending[future]] = future.result()
            if done % stride == 0 or done == len(files):
                emit(StageAdvanced("probe", done))
    unusable = sum(isinstance(result, Unfit) for result in found)
    emit(StageFinished("probe", len(files), time.monotonic() - started, f"{unusable} unusable" if unusable else ""))
    return found


def _probe_or_reason(storage: Storage, path: str) -> MediaInfo | Unfit:
    try:
        return probe(storage, path)
    except Unfit as unfit:
        return unfit


def refuse_unscaled(picture: Image.Image) -> None:
    """Refuse pictures of 32-bit numbers, whose black and white no header tells.

    Raises:
        UnusableMedia: For Pillow's modes "I" and "F"; 16-bit grey ("I;16") has a known range and passes.
    """
    if picture.mode in UNSCALED_MODES:
        kind = UNSCALED_MODES[picture.mode]
        raise UnusableMedia(f"{kind} as pixels: which value is white is not known; save it with 8 or 16 bits")


@contextlib.contextmanager
def open_clip(storage: Storage, path: str) -> Iterator[tuple[Any, Any]]:
    """Open a clip for reading; gives the container and its first moving video stream.

    Raises:
        UnusableMedia: If it cannot be opened or has no video stream.
    """
    with contextlib.ExitStack() as opened:
        local = storage.local_path(path)
        try:
            # An absolute path cannot be taken for a URL, and the list keeps play lists off the network.
            source = str(local.absolute()) if local else opened.enter_context(storage.open(path))
            options = {"protocol_whitelist": "file"} if local else {}
            container = opened.enter_context(av.open(source, options=options, metadata_errors="replace"))
        except (FFmpegError, OSError) as error:
            raise UnusableMedia(_why_not_opened(storage, path, error)) from error
        yield container, _moving_stream(container)


def _moving_stream(container: Any) -> Any:
    moving = [stream for stream in container.streams.video if not _is_cover_art(stream)]
    if not moving:
        kinds = sorted({stream.type for stream in container.streams})
        cover = " and a cover picture" if container.streams.video else ""
        others = ", ".join(kind for kind in kinds if kind != "video") or "nothing"
        raise UnusableMedia(f"no video stream: the file holds only {others}{cover}")
    if moving[0].codec_context is None:
        raise UnusableMedia("no decoder knows the coding of its video stream")
    return moving[0]


def _is_cover_art(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _check_beginning(storage: Storage, file: StoredFile) -> None:
    """Refuse, without a decoder, whatever has no bytes of media in it."""
    if file.size_bytes == 0:
        raise UnusableMedia("empty file (0 bytes)")
    try:
        with storage.open(file.path) as handle:
            beginning = handle.read(512)
    except OSError as error:
        raise UnusableMedia(f"cannot be reached ({error.strerror or error})") from error
    _refuse_text(beginning)


def _refuse_text(beginning: bytes) -> None:
    if not _is_text(beginning):
        return
    lowered = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if lowered.startswith(b"version https://git-lfs"):
        raise UnusableMedia("a Git LFS pointer, the download is incomplete; run `git lfs pull` where it came from")
    if lowered.startswith((b"<!doctype html", b"<html")):
        raise UnusableMedia("an HTML page saved under the name of a clip, the download failed")
    raise UnusableMedia("a text file saved under the name of a clip")


def _is_text(beginning: bytes) -> bool:
    """Whether these are printable UTF-8 characters; every media format starts with other bytes."""
    if any(byte < 32 and byte not in b"\t\r\n" for byte in beginning):
        return False
    for cut in range(4):  # the last character may be cut in two
        try:
            beginning[: len(beginning) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return True
    return False


def _why_not_opened(storage: Storage, path: str, error: FFmpegError | OSError) -> str:
    with contextlib.suppress(OSError, Unfit):
        cut = _cut_index(storage, storage.stat(path))
        if cut:
            return cut
    return f"not a readable clip ({error.strerror or error})"


def _cut_index(storage: Storage, file: StoredFile) -> str:
    """Why the index of an ISO media file is incomplete; empty if it is whole, or the file another format.

    A cut index may still open, with a wrong list of frames.
    """
    size = file.size_bytes
    with storage.open(file.path) as handle:
        boxes = _top_level_boxes(handle, size)
    if not boxes or boxes[0].name != "ftyp":
        return ""
    for box in boxes:
        if box.name in ("moov", "moof") and box.end > size:
            return f"truncated: the index ({box.name}) ends at byte {box.end}, the file at {size}"
    if all(box.name != "moov" for box in boxes):
        return "truncated: the index (moov) at the end of the file is missing"
    return ""


@dataclass(frozen=True)
class _Box:
    """One top-level part of an ISO media file and where it says that it ends."""

    name: str
    end: int


def _top_level_boxes(handle: BinaryIO, size: int) -> list[_Box]:
    """Top-level boxes of an ISO media file (ISO/IEC 14496-12, 4.2), at most the first 1000."""
    boxes: list[_Box] = []
    position = 0
    while position + 8 <= size and len(boxes) < 1000:
        handle.seek(position)
        header = handle.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        end = position + length if length >= 8 else size
        boxes.append(_Box(header[4:8].decode("latin-1"), end))
        position = end
    return boxes


def _probe_video(storage: Storage, file: StoredFile) -> MediaInfo:
    with open_clip(storage, file.path) as (container, stream):
        if any(mark in container.format.name for mark in PICTURE_FORMATS):
            return _probe_picture_stream(storage, file)
        _check_size(stream.codec_context.width, stream.codec_context.height)
        cut = _cut_index(storage, file)
        if cut:
            raise UnusableMedia(cut)
        try:
            timeline, frame = _read_timeline(container, stream, file.size_bytes)
        except FFmpegError as error:
            raise UnusableMedia(f"damaged: the first picture cannot be decoded ({error.strerror})") from error
        if frame is None:
            raise UnusableMedia("damaged: not one picture can be decoded")
        _refuse_hdr(frame)
        aspect = _sample_aspect(stream)
        width, height = max(1, round(frame.width * aspect)), frame.height
        rotation = round(frame.rotation / 90) * 90 % 360
        if rotation in (90, 270):
            width, height = height, width
        return MediaInfo(
            kind="video",
            width=width,
            height=height,
            frame_rate=_mean_rate(stream, timeline),
            num_frames=timeline.num_frames,
            duration_seconds=timeline.duration_seconds,
            rotation=rotation,
            sample_aspect=aspect,
            codec=stream.codec_context.name,
            size_bytes=file.size_bytes,
            version=file.version,
        )


def _probe_picture_stream(storage: Storage, file: StoredFile) -> MediaInfo:
    try:
        return _probe_image(storage, file)
    except UnidentifiedImageError as error:
        raise UnusableMedia(f"not a readable picture ({error})") from error


def _probe_image(storage: Storage, file: StoredFile) -> MediaInfo:
    try:
        with storage.open(file.path) as handle, Image.open(handle) as image:
            refuse_unscaled(image)
            width, height = image.size
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
            codec = (image.format or "image").lower()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableMedia(_too_large("more than 89")) from error
    except UnidentifiedImageError:
        raise
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's readers report damage by all three
        raise UnusableMedia(f"not a readable picture ({error})") from error
    _check_size(width, height)
    if orientation >= 5:
        width, height = height, width
    return MediaInfo(
        kind="image",
        width=width,
        height=height,
        frame_rate=0.0,
        num_frames=1,
        duration_seconds=0.0,
        rotation=EXIF_TURNS.get(orientation, 0),
        sample_aspect=1.0,
        codec=codec,
        size_bytes=file.size_bytes,
        version=file.version,
    )


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise UnusableMedia("the header gives no picture size")
    if width * height > LARGEST_PICTURE_MEGAPIXELS * 1e6:
        raise UnusableMedia(_too_large(f"{width}x{height} = {width * height / 1e6:.0f}"))


def _too_large(size: str) -> str:
    return f"pictures of {size} megapixels; at most {LARGEST_PICTURE_MEGAPIXELS} are decoded"


def _refuse_hdr(frame: Any) -> None:
    curve = HDR_TRANSFERS.get(int(frame.color_trc))
    if curve:
        raise UnusableMedia(
            f"high dynamic range ({curve} transfer): its colours would be wrong; convert it to standard range first"
        )


def _sample_aspect(stream: Any) -> float:
    declared = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    aspect = float(declared) if declared else 1.0
    return aspect if 1 / WIDEST_SAMPLE_ASPECT <= aspect <= WIDEST_SAMPLE_ASPECT else 1.0


def _mean_rate(stream: Any, timeline: Timeline) -> float:
    """The exact rate of the header (30000/1001) where it agrees with the frames, else their mean."""
    declared = float(stream.average_rate) if stream.average_rate else 0.0
    if declared > 0 and abs(declared * timeline.duration_seconds - timeline.num_frames) < 0.4:
        return declared
    return timeline.num_frames / timeline.duration_seconds


def _read_timeline(container: Any, stream: Any, size_bytes: int) -> tuple[Timeline, Any]:
    """Count the frames and give the first picture as well (None if there is none)."""
    entries = stream.index_entries
    if "mov" in container.format.name and stream.frames > 0 and len(entries) > 0 and stream.duration:
        timeline = _timeline_of_index(stream, entries, size_bytes)
        return timeline, next(iter(container.decode(stream)), None)
    return _timeline_of_packets(container, stream)


def _timeline_of_index(stream: Any, entries: Any, size_bytes: int) -> Timeline:
    """MP4 and MOV list every frame in their index; it also shows whether the end of the file is missing."""
    shown = [entry for entry in entries if not entry.is_discard]
    whole = sum(entry.pos + entry.size <= size_bytes for entry in shown)
    if whole < len(shown):
        raise UnusableMedia(f"truncated: the header declares {len(shown)} frames, the file ends after {whole}")
    if not shown:
        raise UnusableMedia("the video stream has no frames")
    return Timeline(len(shown), float(stream.duration * stream.time_base))


def _timeline_of_packets(container: Any, stream: Any) -> tuple[Timeline, Any]:
    """Read every packet (not the pictures) where the header has no trustworthy count."""
    starts: list[int] = []
    durations: list[int] = []
    last_end = 0.0  # of any stream, seconds
    first_frame = None
    for packet in container.demux():
        moment = packet.pts if packet.pts is not None else packet.dts
        if moment is not None and packet.size:
            last_end = max(last_end, float((moment + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index != stream.index or packet.is_discard:
            continue
        if packet.size:
            starts.append(moment if moment is not None else len(starts))
            durations.append(packet.duration or 0)
        if first_frame is None:
            first_frame = next(iter(packet.decode()), None)
    if not starts:
        raise UnusableMedia("the video stream has no frames")
    _refuse_missing_end(container, stream, len(starts), last_end)
    return Timeline(len(starts), _duration_of(starts, durations, stream)), first_frame


def _duration_of(starts: list[int], durations: list[int], stream: Any) -> float:
    first, last = min(starts), max(starts)
    tick = float(stream.time_base)
    if len(starts) > 1:
        mean, stated = (last - first) / (len(starts) - 1), durations[starts.index(last)]
        # Matroska rounds a frame's length to milliseconds; within one tick the mean is nearer to the truth.
        last_frame = mean if not stated or abs(mean - stated) <= 1 else stated
        return (last - first + last_frame) * tick
    declared = float(stream.average_rate) if stream.average_rate else 25.0
    return durations[0] * tick or 1 / declared


def _refuse_missing_end(container: Any, stream: Any, num_frames: int, last_end: float) -> None:
    if stream.frames > num_frames:
        raise UnusableMedia(f"truncated: the header declares {stream.frames} frames, the file holds {num_frames}")
    if container.duration is None or "matroska" not in container.format.name:
        return
    declared = (container.duration + (container.start_time or 0)) / av.time_base
    if declared - last_end > MISSING_END_SECONDS:
        raise UnusableMedia(f"truncated: the header declares {declared:.2f} s, the file ends after {last_end:.2f} s")
