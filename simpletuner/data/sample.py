"""The frozen records that travel from a file on the disk to a batch on the device.

Nothing here opens a file. A `Sample` says which frames of which file are trained and how they are
cut; a `Batch` is what one forward pass receives.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

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
        modified_ns: Time stamp of the file in nanoseconds.
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
    modified_ns: int


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
    """

    dataset: str
    path: str
    info: MediaInfo
    frames: FramePlan
    crop: CropPlan
    captions: tuple[str, ...]
    repeats: int

    @property
    def bucket(self) -> BucketKey:
        return BucketKey(self.crop.width, self.crop.height, self.frames.num_frames)

    @property
    def name(self) -> str:
        """Unique name across data sets, used in reports and as a part of cache fingerprints."""
        return f"{self.dataset}/{self.path}"


@dataclass(frozen=True)
class LeftOut:
    """A file that is not trained, and why; the file itself is never touched."""

    dataset: str
    path: str
    reason: str

    @property
    def shown_path(self) -> str:
        """The path as reports print it: on one line, control characters written out."""
        return printable(self.path)


@dataclass(frozen=True)
class Batch:
    """What one forward pass receives; every clip has the shape of `bucket`.

    Attributes:
        latents: [B, C, F, H, W] float32 or bfloat16, normalised latents.
        prompt_embeds: [B, L, D] text features.
        prompt_mask: [B, L] bool, True = real token.
        frame_rates: [B] float32, frames per second of each clip.
        bucket: Pixel shape of the clips.
        sample_numbers: Running number of each draw since the start of the run; keys all randomness.
        sample_names: Name of each sample, for messages.
        captions: Text of each sample as trained (empty when dropped).
        share: Part of the optimizer step's samples that this batch holds, in (0, 1]; the shares of
            one step sum to 1, so accumulation over unequal batches is weighted per sample.
        ends_step: Whether the optimizer steps after this batch.
        epoch: Epoch the batch belongs to, from 1.
    """

    latents: Tensor
    prompt_embeds: Tensor
    prompt_mask: Tensor
    frame_rates: Tensor
    bucket: BucketKey
    sample_numbers: tuple[int, ...]
    sample_names: tuple[str, ...]
    captions: tuple[str, ...]
    share: float
    ends_step: bool
    epoch: int

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The same batch on `device`: text in `dtype`, latents untouched in kind (float32 maths)."""
        return replace(
            self,
            latents=self.latents.to(device, non_blocking=True),
            prompt_embeds=self.prompt_embeds.to(device, dtype, non_blocking=True),
            prompt_mask=self.prompt_mask.to(device, non_blocking=True),
            frame_rates=self.frame_rates.to(device, non_blocking=True),
        )
