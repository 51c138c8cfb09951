"""Clips to latents: decoded frames onto the device, through the autoencoder, back in the format in which they are kept.

Frames stay uint8 until they are where the autoencoder is. Nothing here knows of entries or files.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from simpletuner.caching.pipeline import Refused
from simpletuner.core.errors import UserError
from simpletuner.data.decode import Frames, decode_sample
from simpletuner.data.sample import DamagedMedia, Sample, Unfit
from simpletuner.data.storage import Storage
from simpletuner.models.family import Autoencoder
from simpletuner.runtime.host import release_memory

NOT_FINITE = Refused("its latents are not finite numbers (try vae_dtype=fp32)")
# On a CPU two clips side by side use two halves of the cores better than one clip uses all, because much of the
# encoder's work does not split; more lanes would only take more memory.
_CPU_LANES = 2


class ClipEncoder:
    """An autoencoder that is loaded when the first clip comes; may be used by several threads."""

    def __init__(
        self, storages: Mapping[str, Storage], device: torch.device, load_autoencoder: Callable[[], Autoencoder]
    ) -> None:
        self._storages = storages
        self._device = device
        self._load_autoencoder = load_autoencoder
        self._autoencoder: Autoencoder | None = None
        self._loading = threading.Lock()
        self._one_at_a_time = threading.Lock()

    def encode_frames(self, clips: Sequence[Frames]) -> list[Tensor | Refused]:
        """Latents [C, F, H, W] float32 on the CPU of each clip of one shape, or why it has none.

        Args:
            clips: Frames uint8 [F, H, W, 3].

        Raises:
            UserError: If one clip alone does not fit into the memory of the device.
        """
        latents = _encode(self._loaded(), clips, self._device)
        return [row if bool(np.isfinite(row.numpy()).all()) else NOT_FINITE for row in latents]

    def encode(self, sample: Sample) -> Tensor:
        """Latents [C, F, H, W] float32 on the CPU of one clip.

        Raises:
            Unfit: If it cannot be decoded, or has no latents.
        """
        frames = decode(self._storages[sample.dataset], sample)
        if isinstance(frames, Refused):
            raise Unfit(frames.reason)
        with self._one_at_a_time:
            latents = self.encode_frames([frames])[0]
        if isinstance(latents, Refused):
            raise Unfit(latents.reason)
        return latents

    def drop(self) -> None:
        """Forget the autoencoder; the next clip loads it again."""
        self._autoencoder = None
        release_memory()

    def _loaded(self) -> Autoencoder:
        with self._loading:
            if self._autoencoder is None:
                self._autoencoder = self._load_autoencoder()
            return self._autoencoder


def decode(storage: Storage, sample: Sample) -> Frames | Refused:
    """Frames uint8 [F, H, W, 3] of a sample, or why there are none."""
    return or_refused(lambda: decode_sample(storage, sample))


def or_refused(look: Callable[[], Frames]) -> Frames | Refused:
    """What `look` gives, or why the file gives nothing."""
    try:
        return look()
    except Unfit as error:
        return Refused(error.reason, isinstance(error, DamagedMedia))
    except OSError as error:
        return Refused(f"the file could not be read ({error.strerror or error})")


@contextlib.contextmanager
def encoder_lanes(device: torch.device) -> Iterator[int]:
    """How many clips are encoded side by side on `device`; on a CPU they share its threads while this is open."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < _CPU_LANES:
        yield 1
        return
    torch.set_num_threads(threads // _CPU_LANES)
    try:
        yield _CPU_LANES
    finally:
        torch.set_num_threads(threads)


def stored_as(latents: Tensor, dtype: torch.dtype) -> Tensor:
    """Latents in the number format in which they are kept."""
    return latents.to(dtype)


def as_read(latents: Tensor) -> Tensor:
    """Kept latents as training reads them: float32, exactly the kept values.

    NumPy does the work in this thread alone; PyTorch would give every reading thread a team of its own.
    """
    if latents.dtype != torch.bfloat16:
        return latents.float()
    # bfloat16 is the upper half of a float32.
    halves = latents.contiguous().view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    return torch.from_numpy((halves << 16).view(np.float32))


def frame_bytes(sample: Sample) -> int:
    """Memory of the decoded frames of a sample."""
    return sample.frames.num_frames * sample.crop.width * sample.crop.height * 3


def pixels_on(device: torch.device, clips: Sequence[Frames]) -> Tensor:
    """Frames uint8 [F, H, W, 3] each -> [B, 3, F, H, W] on `device`, still bytes: an autoencoder takes them."""
    frames = clips[0][None] if len(clips) == 1 else np.stack(clips)
    return torch.from_numpy(frames).to(device).permute(0, 4, 1, 2, 3)


def _encode(autoencoder: Autoencoder, clips: Sequence[Frames], device: torch.device) -> list[Tensor]:
    """Latents of each clip; halves the batch when memory runs out."""
    try:
        with torch.inference_mode():
            return list(autoencoder.encode(pixels_on(device, clips)).to("cpu", torch.float32))
    except torch.OutOfMemoryError as error:
        if len(clips) == 1:
            frames, height, width, _ = clips[0].shape
            raise UserError(
                f"one clip of {width}x{height}@{frames} does not fit into the memory of the device while encoding",
                "The autoencoder needs room for one clip at a time",
                "Set vae_enable_tiling=true, or lower resolution or num_frames",
            ) from error
    middle = len(clips) // 2
    return _encode(autoencoder, clips[:middle], device) + _encode(autoencoder, clips[middle:], device)
