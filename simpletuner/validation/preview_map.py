"""The cheapest decoder there is: a linear map from each latent cell to the colours under it.

Fitted once by least squares on the run's own cached latents and the frames they were made of, and kept in the run
folder together with the fingerprint of the autoencoder, because latents of another one mean something else. It
paints `DETAIL` x `DETAIL` colours per cell and one picture per latent frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from simpletuner.core.files import write_atomic
from simpletuner.maths.linear_map import LinearMap, correlation, fit_linear
from simpletuner.validation.video_file import Frames

MAP_FILE = "preview_map.safetensors"  # inside the run folder
DETAIL = 4  # colours per side of a cell; a cell of LTX-Video is 32 px wide
ENOUGH_CELLS = 40_000  # some 300 for each of 128 channels
_HELD_BACK = 5  # every fifth latent frame judges the map instead of shaping it


@dataclass(frozen=True)
class PreviewMap:
    """A fitted map.

    Attributes:
        linear: From a latent cell [C] to [DETAIL * DETAIL * 3] colours in [0, 1].
        correlation: Pearson's r of painted and true colours on latent frames it was not fitted on.
        cells: Latent cells it was fitted on.
    """

    linear: LinearMap
    correlation: float
    cells: int

    def paint(self, latents: Tensor) -> Frames:
        """Latents [1, C, f, h, w] -> uint8 [f, h * DETAIL, w * DETAIL, 3]."""
        colours = self.linear(latents[0].float().permute(1, 2, 3, 0))  # [f, h, w, DETAIL * DETAIL * 3]
        frames, height, width, _ = colours.shape
        cells = colours.view(frames, height, width, DETAIL, DETAIL, 3).permute(0, 1, 3, 2, 4, 5)
        picture = cells.reshape(frames, height * DETAIL, width * DETAIL, 3)
        return (picture * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def fit_preview_map(clips: Iterable[tuple[Tensor, Frames]]) -> PreviewMap:
    """Fit the map on clips, as many as it takes.

    Args:
        clips: Normalised latents [C, f, h, w] and the frames uint8 [F, H, W, 3] they were made of.

    Raises:
        ValueError: If there is no clip.
    """
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    held_inputs: list[Tensor] = []
    held_targets: list[Tensor] = []
    cells = 0
    for number, (latents, colours) in enumerate(_latent_frames(clips)):
        held = number % _HELD_BACK == _HELD_BACK - 1
        (held_inputs if held else inputs).append(latents)
        (held_targets if held else targets).append(colours)
        cells += len(latents)
        if cells >= ENOUGH_CELLS:
            break
    if not inputs:
        raise ValueError("there is no clip to fit the preview map on")
    known = (torch.cat(inputs), torch.cat(targets))
    # So few latent frames that none could be held back: judged on what it knows.
    judged = (torch.cat(held_inputs), torch.cat(held_targets)) if held_inputs else known
    found = correlation(fit_linear(*known)(judged[0]), judged[1])
    whole = fit_linear(torch.cat([*inputs, *held_inputs]), torch.cat([*targets, *held_targets]))
    return PreviewMap(whole, found, cells)


def cell_colours(frames: Frames, latent_frames: int, latent_height: int, latent_width: int) -> Tensor:
    """Mean colours [f, h, w, DETAIL * DETAIL * 3] in [0, 1] of the pixels that each latent cell stands for.

    The first latent frame stands for the first frame alone, each later one for an equal share of the others.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).float() / 255
    rows, columns = latent_height * DETAIL, latent_width * DETAIL
    count, height, width, _ = pixels.shape
    small = pixels.view(count, rows, height // rows, columns, width // columns, 3).mean((2, 4))
    times = [small[:1]]
    if latent_frames > 1:
        times.append(small[1:].view(latent_frames - 1, -1, rows, columns, 3).mean(1))
    whole = torch.cat(times).view(latent_frames, latent_height, DETAIL, latent_width, DETAIL, 3)
    return whole.permute(0, 1, 3, 2, 4, 5).reshape(latent_frames, latent_height, latent_width, DETAIL * DETAIL * 3)


def save_preview_map(found: PreviewMap, folder: Path, autoencoder: str) -> None:
    """Keep the map in the run folder.

    Raises:
        UserError: If the disk is full or closed to writing (exit code 6).
    """
    notes = {"autoencoder": autoencoder, "detail": str(DETAIL), "correlation": repr(found.correlation)}
    tensors = {"weight": found.linear.weight.contiguous(), "bias": found.linear.bias}
    write_atomic(folder / MAP_FILE, save(tensors, {**notes, "cells": str(found.cells)}))


def load_preview_map(folder: Path, autoencoder: str) -> PreviewMap | None:
    """The map of an earlier start; None if there is none, or it belongs to another autoencoder."""
    try:
        with safe_open(folder / MAP_FILE, "pt") as file:
            notes = file.metadata() or {}
            if (notes.get("autoencoder"), notes.get("detail")) != (autoencoder, str(DETAIL)):
                return None
            linear = LinearMap(file.get_tensor("weight"), file.get_tensor("bias"))
            return PreviewMap(linear, float(notes["correlation"]), int(notes["cells"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _latent_frames(clips: Iterable[tuple[Tensor, Frames]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Cells [h * w, C] of one latent frame after the other, and their colours [h * w, D]."""
    for latents, frames in clips:
        colours = cell_colours(frames, *latents.shape[1:])
        for number in range(latents.shape[1]):
            yield latents[:, number].flatten(1).T.float(), colours[number].flatten(0, 1)
