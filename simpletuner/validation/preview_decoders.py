"""Decoders of previews: from latents in the making to a few small pictures, as cheaply as can be.

One function per row of `config/catalogs/previews.py`. Each opens what it needs once per run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from simpletuner.core.errors import UserError
from simpletuner.data.decode import decode_sample
from simpletuner.data.sample import Sample, Unfit
from simpletuner.data.storage import Storage
from simpletuner.models.family import Autoencoder, LatentDecoder, ModelFamily
from simpletuner.validation.preview_map import (
    PreviewMap,
    fit_preview_map,
    load_preview_map,
    save_preview_map,
)
from simpletuner.validation.video_file import Frames

_MOST_CLIPS = 16  # that a map is fitted on
_THINNED = 4  # of a decoder that paints every frame, each fourth is shown


@dataclass(frozen=True)
class Pictures:
    """Pictures of a video in the making.

    Attributes:
        frames: uint8 [N, H, W, 3].
        frames_apart: Frames of the video between one picture and the next.
    """

    frames: Frames
    frames_apart: float


class PreviewDecoder(Protocol):
    """Paints latents in the making."""

    @property
    def told(self) -> str:
        """What it is, for people."""

    def paint(self, latents: Tensor) -> Pictures:
        """Pictures of normalised latents [1, C, f, h, w]."""


@dataclass(frozen=True)
class PreviewSources:
    """What decoders are made of.

    Attributes:
        family: The model's family.
        device: Where latents are in the making.
        folder: The run folder.
        autoencoder: Identity of the autoencoder as it is run.
        load_autoencoder: Brings it in.
        samples: What is trained.
        read_latents: Cached latents [C, f, h, w] of a sample.
        storages: Where the files of each data set lie.
        file: The decoder file, where one is named.
    """

    family: ModelFamily
    device: torch.device
    folder: Path
    autoencoder: str
    load_autoencoder: Callable[[], Autoencoder]
    samples: Sequence[Sample]
    read_latents: Callable[[Sample], Tensor]
    storages: dict[str, Storage]
    file: Path | None = None


def open_linear(sources: PreviewSources) -> PreviewDecoder:
    """The fitted map, of an earlier start or fitted now.

    Raises:
        UserError: If no clip of the run can be read.
    """
    found = load_preview_map(sources.folder, sources.autoencoder)
    if found is None:
        try:
            found = fit_preview_map(_clips(sources))
        except ValueError as error:
            raise UserError(
                "no preview map can be fitted: no trained clip could be read",
                "The map is fitted on cached latents and the frames they were made of",
                "Set validation_preview_decoder to autoencoder",
            ) from error
        save_preview_map(found, sources.folder, sources.autoencoder)
    return _Linear(found, sources.family.grid.temporal)


def open_tiny(sources: PreviewSources) -> PreviewDecoder:
    """The TAE decoder of the file that is named.

    Raises:
        UserError: If the file holds none that fits the model's latents.
    """
    assert sources.file is not None
    return _Tiny(sources.family.load_tiny_decoder(sources.file, sources.device), sources.file.name)


def open_autoencoder(sources: PreviewSources) -> PreviewDecoder:
    """The model's own autoencoder, brought in for each preview, on two latent frames."""
    return _Whole(sources.load_autoencoder, sources.family.grid.temporal)


def _clips(sources: PreviewSources) -> Iterator[tuple[Tensor, Frames]]:
    """Latents and frames of clips spread evenly over the run's; what cannot be read is passed over."""
    apart = max(1, len(sources.samples) // _MOST_CLIPS)
    for sample in sources.samples[::apart]:
        try:
            yield sources.read_latents(sample), decode_sample(sources.storages[sample.dataset], sample)
        except (Unfit, UserError, OSError):
            continue


class _Linear:
    def __init__(self, found: PreviewMap, temporal: int) -> None:
        self._map, self._temporal = found, temporal
        self.told = f"a linear map (correlation {found.correlation:.2f} on latent frames it was not fitted on)"

    def paint(self, latents: Tensor) -> Pictures:
        return Pictures(self._map.paint(latents), self._temporal)


class _Tiny:
    def __init__(self, decoder: LatentDecoder, name: str) -> None:
        self._decoder = decoder
        self.told = f"the decoder {name}"

    def paint(self, latents: Tensor) -> Pictures:
        return Pictures(_as_frames(self._decoder.decode(latents))[::_THINNED], _THINNED)


class _Whole:
    def __init__(self, load: Callable[[], Autoencoder], temporal: int) -> None:
        self._load, self._temporal = load, temporal
        self.told = "the autoencoder, on the first latent frame and the middle one"

    def paint(self, latents: Tensor) -> Pictures:
        middle = latents.shape[2] // 2
        autoencoder = self._load()
        stills = [_as_frames(autoencoder.decode(latents[:, :, place : place + 1])) for place in sorted({0, middle})]
        return Pictures(np.concatenate(stills), max(1, middle * self._temporal))


def _as_frames(pixels: Tensor) -> Frames:
    """Pixels [1, 3, F, H, W] in [-1, 1] -> uint8 [F, H, W, 3]."""
    frames = ((pixels[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return frames.permute(1, 2, 3, 0).cpu().contiguous().numpy()
