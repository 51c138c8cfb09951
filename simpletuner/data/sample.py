"""The frozen records of what is trained: which frames of which file, and how they are cut.

Nothing here opens a file or knows of tensors, so that a data set is planned and checked without
torch. `batch.py` has what one forward pass receives.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

MediaKind = Literal["video", "image"]
# Unicode categories that would break a line of a report or steer a terminal.
CONTROL_CATEGORIES = ("Cc", "Zl", "Zp")


def printable(text: str) -> str:
    """`text` on one line: a line break becomes \\n, every other control character is written out likewise."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in CONTROL_CATEGORIES
        else character
        for character in text
    )


class Unfit(Exception):  # noqa: N818 - a verdict on a file, not a fault
    """This file cannot be trained; the rest of the data set goes on.

    Attributes:
        reason: What was found and which rule it breaks, with the numbers, for the user to read.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnusableMedia(Unfit):
    """The file is missing, damaged, or of a kind that cannot be trained."""


class DamagedMedia(UnusableMedia):
    """The bytes of the file are at fault: not the disk, the memory, a missing decoder or a setting."""


class UnreadMedia(UnusableMedia):
    """The file could not be read this time (disk, network, memory); it is tried again at the next start."""


class ShortMedia(DamagedMedia):
    """The pictures end before the time that the header declares.

    Attributes:
        num_frames: Frames that the file really holds, at its own rate.
        duration_seconds: When the last of them ends.
    """

    def __init__(self, reason: str, num_frames: int, duration_seconds: float) -> None:
        super().__init__(reason)
        self.num_frames = num_frames
        self.duration_seconds = duration_seconds


@dataclass(frozen=True)
class MediaInfo:
    """What the header of a file says, after rotation and sample aspect are applied.

    Attributes:
        kind: Clip or still image.
        width: Display width in pixels.
        height: Display height in pixels.
        frame_rate: Mean frames per second; 0 for an image.
        num_frames: Frames by header or by counting packets; 1 for an image.
        duration_seconds: Length of the video stream; 0 for an image.
        rotation: Degrees, counter-clockwise, a decoded frame must be turned: 0, 90, 180 or 270.
        sample_aspect: Width over height of one stored pixel; 1.0 for square pixels.
        codec: Name of the codec ("h264").
        size_bytes: Size of the file.
        version: Text that changes with the content of the file, see `storage.StoredFile`.
        interlaced: Whether the first picture is two half pictures of different moments.
        variable_rate: Whether the frames are shown for clearly different times.
        pixel_format: How pictures are stored, in FFmpeg's words ("yuv420p10le"); empty when not known.
        audio: Name of the first sound stream's codec; empty without sound, or when not known.
        transfer: "PQ" or "HLG" for pictures of high dynamic range, which are brought to standard range; else empty.
    """

    kind: MediaKind
    width: int
    height: int
    frame_rate: float
    num_frames: int
    duration_seconds: float
    rotation: int
    sample_aspect: float
    codec: str
    size_bytes: int
    version: str
    interlaced: bool = False
    variable_rate: bool = False
    pixel_format: str = ""
    audio: str = ""
    transfer: str = ""


@dataclass(frozen=True)
class FramePlan:
    """Which moments of a clip are trained: `num_frames` of them, 1 / `frame_rate` seconds apart.

    Frame k is the source frame shown at `start_seconds` + k / `frame_rate`. An image has one frame
    at 0 with `frame_rate` of the run (one frame has no speed).
    """

    num_frames: int  # of the form 8k + 1
    frame_rate: float  # frames per second of the trained clip, also used for its positions
    start_seconds: float


@dataclass(frozen=True)
class CropPlan:
    """Covering resize, then cut: all sizes in pixels.

    The source is scaled to `scaled_width` x `scaled_height` (covers the target, keeps the aspect),
    then the window with its top left corner at (`top`, `left`) and the target's size is cut out.
    """

    scaled_width: int
    scaled_height: int
    top: int
    left: int
    width: int
    height: int


@dataclass(frozen=True)
class Freedom:
    """Where else a sample may lie in its file; each epoch draws one of these places, the first takes the planned one.

    Attributes:
        moves_crop: Whether its window in the picture moves.
        begin_seconds: Earliest moment at which its frames may begin.
        spare_frames: Frames, at the trained rate, by which they may begin later than that.
    """

    moves_crop: bool
    begin_seconds: float = 0.0
    spare_frames: int = 0


@dataclass(frozen=True, order=True)
class BucketKey:
    """Clips of one bucket have the same size and may share a batch; prints as "768x512@121"."""

    width: int
    height: int
    num_frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}@{self.num_frames}"


@dataclass(frozen=True)
class Sample:
    """One trained excerpt of one file.

    Attributes:
        dataset: Id of the data set entry.
        path: Path below the entry's folder, with forward slashes; unique within the entry.
        info: Header facts of the file.
        frames: Which moments are trained.
        crop: How each frame is cut.
        captions: All captions of the file, at least one; one is drawn each time the sample is used.
        repeats: Times the sample is used per epoch, at least 1.
        part: Which of the excerpts of one file this is, from 0.
        is_i2v: Whether training may give the model its first frame.
        is_prior: Whether the target is the base model's own answer.
        freedom: Where else it may lie, drawn anew in each epoch; None if it stays.
    """

    dataset: str
    path: str
    info: MediaInfo
    frames: FramePlan
    crop: CropPlan
    captions: tuple[str, ...]
    repeats: int
    part: int = 0
    is_i2v: bool = False
    is_prior: bool = False
    freedom: Freedom | None = None

    @property
    def bucket(self) -> BucketKey:
        return BucketKey(self.crop.width, self.crop.height, self.frames.num_frames)

    @property
    def name(self) -> str:
        """Unique name across data sets, used in reports and as a part of cache fingerprints.

        The second excerpt of a file is "set/clip.mp4#2"; the first one keeps the plain name.
        """
        name = f"{self.dataset}/{self.path}"
        return f"{name}#{self.part + 1}" if self.part else name


@dataclass(frozen=True)
class LeftOut:
    """A file, or one scene of it, that is not trained, and why; the file itself is never touched.

    Attributes:
        dataset: Id of the data set entry.
        path: Path below the entry's folder.
        reason: What was found and which rule it breaks.
        part: Which part of the file is meant ("12.40 to 13.10 s") when others are trained; else empty.
        damaged: Whether the bytes of the file are at fault, see `DamagedMedia`.
    """

    dataset: str
    path: str
    reason: str
    part: str = ""
    damaged: bool = False

    @property
    def shown_path(self) -> str:
        """The path as reports print it: on one line, control characters written out."""
        return f"{printable(self.path)} ({self.part})" if self.part else printable(self.path)
