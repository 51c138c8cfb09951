"""Reads the header of a clip or picture: size as shown, exact frame count, true speed.

A file that cannot be trained raises `UnusableMedia` with a reason a person can act on; nothing here
decides which frames are trained (`geometry.py`) and no file is ever changed. Counting frames reads
packets, never pictures: only the first picture is decoded, because the turning of a clip, its
transfer curve and whether it decodes at all are known from there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import av
from av.error import FFmpegError, InvalidDataError
from PIL import Image, UnidentifiedImageError

from simpletuner.data.listing import IMAGE_EXTENSIONS
from simpletuner.data.sample import DamagedMedia, MediaInfo, Unfit, UnreadMedia, UnusableMedia
from simpletuner.data.storage import Storage, StoredFile
from simpletuner.data.tone import HDR_TRANSFERS
from simpletuner.data.watched import WatchedFile

# A decoded 16-megapixel frame is 50 MB of RGB and 8K video has 33 megapixels; beyond this a header
# of a few bytes could claim all memory of the machine.
LARGEST_PICTURE_MEGAPIXELS = 64
# Pixels this far from square are a damaged header, not a format anybody uses.
WIDEST_SAMPLE_ASPECT = 8.0
# Matroska rounds to milliseconds and an audio track may end a little after the picture.
MISSING_END_SECONDS = 0.5
# A picture shown for less or more than the others by this share of their mean makes the rate a variable one.
UNEVEN_SHARE = 0.25
PICTURE_FORMATS = ("_pipe", "image2")  # what FFmpeg calls still pictures
UNSCALED_MODES = {"I": "32-bit whole numbers", "F": "32-bit floating-point numbers"}  # Pillow's modes
EXIF_ORIENTATION = 0x0112
EXIF_TURNS = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}  # degrees counter-clockwise


def unusable(reason: str, error: Exception) -> UnusableMedia:
    """The verdict on a file that a reader gave up with `error`.

    FFmpeg blames the file only by "invalid data", Pillow by errors that carry no error number of the system.
    """
    if isinstance(error, FFmpegError):
        at_fault = isinstance(error, InvalidDataError)
    else:
        at_fault = not isinstance(error, OSError) or error.errno is None
    return DamagedMedia(reason) if at_fault else UnreadMedia(reason)


@dataclass(frozen=True)
class Timeline:
    """Frames and times of a video stream, by its index or by its packets."""

    num_frames: int
    duration_seconds: float
    is_even: bool


def probe(storage: Storage, path: str, listed: StoredFile | None = None) -> MediaInfo:
    """Read what the file at `path` of `storage` holds; its content decides, not its extension.

    Args:
        storage: Where the file lies.
        path: Its path there.
        listed: The file with size and version; saves a question to places that are far away.
    Raises:
        Unfit: If it is no readable clip or picture; the reason says what is wrong.
    """
    file = storage.stat(path) if listed is None or storage.local_path(path) else listed
    beginning, cut = _read_ends(storage, file)
    if PurePosixPath(path).suffix.lower() in IMAGE_EXTENSIONS:
        with contextlib.suppress(UnidentifiedImageError):
            return _probe_image(storage, file)
    if beginning[4:8] == b"ftyp":
        # MP4 and MOV mostly say all in their index; what is wrong or missing there the second, full look tells.
        with contextlib.suppress(Unfit):
            return _probe_video(storage, file, cut, by_index=True)
    return _probe_video(storage, file, cut)


def refuse_unscaled(picture: Image.Image) -> None:
    """Refuse pictures of 32-bit numbers, whose black and white no header tells.

    Raises:
        UnusableMedia: For Pillow's modes "I" and "F"; 16-bit grey ("I;16") has a known range and passes.
    """
    if picture.mode in UNSCALED_MODES:
        kind = UNSCALED_MODES[picture.mode]
        raise UnusableMedia(f"{kind} as pixels: which value is white is not known; save it with 8 or 16 bits")


@contextlib.contextmanager
def open_clip(storage: Storage, path: str, *, by_index: bool = False) -> Iterator[tuple[Any, Any]]:
    """Open a clip for reading; gives the container and its first moving video stream.

    Args:
        storage: Where the file lies.
        path: Its path there.
        by_index: Whether to believe the header of an MP4 or MOV file alone. Otherwise FFmpeg decodes some pictures
            first, which takes most of the time that a large clip's header takes.
    Raises:
        UnusableMedia: If it cannot be opened or has no video stream.
    """
    with contextlib.ExitStack() as opened:
        local = storage.local_path(path)
        try:
            # An absolute path cannot be taken for a URL, and the list keeps play lists off the network.
            source = str(local.absolute()) if local else opened.enter_context(WatchedFile(storage.open(path)))
            options = {"protocol_whitelist": "file" if local else "none"} | ({"probesize": "32"} if by_index else {})
            # Without its name FFmpeg asks some 300 formats whether the file is theirs: a third of the opening.
            format_name = "mov" if by_index else None  # MP4 is a kind of it
            container = opened.enter_context(
                av.open(source, format=format_name, options=options, metadata_errors="replace")
            )
        except (FFmpegError, OSError) as error:
            raise unusable(_why_not_opened(storage, path, error), error) from error
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


def _read_ends(storage: Storage, file: StoredFile) -> tuple[bytes, str]:
    """The first bytes, and what `_cut_index` says; refuses, without a decoder, whatever has no bytes of media in it."""
    if file.size_bytes == 0:
        raise UnusableMedia("empty file (0 bytes)")
    try:
        with storage.open(file.path) as handle:
            beginning = handle.read(512)
            _refuse_text(beginning)
            return beginning, _cut_index(handle, file.size_bytes) if beginning[4:8] == b"ftyp" else ""
    except OSError as error:
        raise UnreadMedia(f"cannot be reached ({error.strerror or error})") from error


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
    with contextlib.suppress(OSError, Unfit), storage.open(path) as handle:
        cut = _cut_index(handle, storage.stat(path).size_bytes)
        if cut:
            return cut
    return f"not a readable clip ({error.strerror or error})"


def _cut_index(handle: BinaryIO, size: int) -> str:
    """Why the index of an ISO media file is incomplete; empty if it is whole, or the file another format.

    A cut index may still open, with a wrong list of frames.

    Raises:
        OSError: If it cannot be read.
    """
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


def _probe_video(storage: Storage, file: StoredFile, cut: str, *, by_index: bool = False) -> MediaInfo:
    """Read a clip whose index is `cut` or whole; `by_index` also refuses what its index does not tell."""
    with open_clip(storage, file.path, by_index=by_index) as (container, stream):
        if any(mark in container.format.name for mark in PICTURE_FORMATS):
            return _probe_picture_stream(storage, file)
        _check_size(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.thread_count = 1  # for one picture, starting threads costs as much as decoding it
        if cut:
            raise DamagedMedia(cut)
        try:
            timeline, frame = _read_timeline(container, stream, file.size_bytes, by_index=by_index)
        except FFmpegError as error:
            raise unusable(f"damaged: the first picture cannot be decoded ({error.strerror})", error) from error
        if frame is None:
            raise DamagedMedia("damaged: not one picture can be decoded")
        aspect = sample_aspect(stream)
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
            codec=stream.codec_context.codec.canonical_name,
            size_bytes=file.size_bytes,
            version=file.version,
            interlaced=bool(frame.interlaced_frame),
            variable_rate=not timeline.is_even,
            pixel_format=frame.format.name,
            transfer=HDR_TRANSFERS.get(int(frame.color_trc), ""),
            audio=next((str(sound.codec_context.name) for sound in container.streams.audio if sound.codec_context), ""),
        )


def _probe_picture_stream(storage: Storage, file: StoredFile) -> MediaInfo:
    try:
        return _probe_image(storage, file)
    except UnidentifiedImageError as error:
        raise unusable(f"not a readable picture ({error})", error) from error


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
        raise unusable(f"not a readable picture ({error})", error) from error
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


def sample_aspect(stream: Any) -> float:
    """Width over height of one stored pixel of a video stream; 1 where it does not say, or nonsense."""
    declared = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    aspect = float(declared) if declared else 1.0
    return aspect if 1 / WIDEST_SAMPLE_ASPECT <= aspect <= WIDEST_SAMPLE_ASPECT else 1.0


def _mean_rate(stream: Any, timeline: Timeline) -> float:
    """The exact rate of the header (30000/1001) where it agrees with the frames, else their mean."""
    declared = float(stream.average_rate) if stream.average_rate else 0.0
    if declared > 0 and abs(declared * timeline.duration_seconds - timeline.num_frames) < 0.4:
        return declared
    return timeline.num_frames / timeline.duration_seconds


def _read_timeline(container: Any, stream: Any, size_bytes: int, *, by_index: bool) -> tuple[Timeline, Any]:
    """Count the frames and give the first picture as well (None if there is none)."""
    entries = stream.index_entries
    if "mov" in container.format.name and stream.frames > 0 and len(entries) > 0 and stream.duration:
        timeline = _timeline_of_index(stream, entries, size_bytes)
        return timeline, next(iter(container.decode(stream)), None)
    if by_index:
        raise UnreadMedia("the index does not tell its frames")
    return _timeline_of_packets(container, stream)


def _timeline_of_index(stream: Any, entries: Any, size_bytes: int) -> Timeline:
    """MP4 and MOV list every frame in their index; it also shows whether the end of the file is missing."""
    shown = [entry for entry in entries if not entry.is_discard]
    whole = sum(entry.pos + entry.size <= size_bytes for entry in shown)
    if whole < len(shown):
        raise DamagedMedia(f"truncated: the header declares {len(shown)} frames, the file ends after {whole}")
    if not shown:
        raise UnusableMedia("the video stream has no frames")
    # Decoding order: with reordered pictures these times are still as even as those of showing.
    even = _are_even([entry.timestamp for entry in shown])
    return Timeline(len(shown), float(stream.duration * stream.time_base), even)


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
    return Timeline(len(starts), _duration_of(starts, durations, stream), _are_even(sorted(starts))), first_frame


def _are_even(stamps: Sequence[int]) -> bool:
    """Whether pictures follow one another evenly, apart from the rounding of their times to ticks."""
    if len(stamps) < 3:
        return True
    mean = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
    slack = max(2.0, UNEVEN_SHARE * mean)
    return all(abs(later - earlier - mean) <= slack for earlier, later in itertools.pairwise(stamps))


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
        raise DamagedMedia(f"truncated: the header declares {stream.frames} frames, the file holds {num_frames}")
    if container.duration is None or "matroska" not in container.format.name:
        return
    declared = (container.duration + (container.start_time or 0)) / av.time_base
    if declared - last_end > MISSING_END_SECONDS:
        raise DamagedMedia(f"truncated: the header declares {declared:.2f} s, the file ends after {last_end:.2f} s")
