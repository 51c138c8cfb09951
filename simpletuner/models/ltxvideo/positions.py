"""Where each token sits in time and space: the coordinates behind the rotary embedding.

Training and sampling both take their positions from here or are proven equal to it (see
`sampling.py`); a checkpoint sampled with other positions than it was trained with degrades silently.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from simpletuner.models.ltxvideo.versions import Positions

SPATIAL = 32  # pixels per latent cell
TEMPORAL = 8  # frames per latent frame


# Batches whose coordinates are remembered: 3 numbers for each token of a clip.
_KEPT = 16


def token_coordinates(
    positions: Positions,
    latent_frames: int,
    latent_height: int,
    latent_width: int,
    frame_rates: Tensor,
    device: torch.device | None = None,
) -> Tensor:
    """Coordinates [B, 3, F*H*W] float32 of all tokens: (seconds, pixel row, pixel column).

    Where the frame rates lie on the CPU, equal calls give the same tensor, so that what is made of it can be
    remembered (`rotation.py`); it must not be changed. If they are all one, its first stride is 0. Elsewhere the rates
    are not looked at, because the host would wait for them.

    Args:
        positions: "plain": latent frame f is at 8 f / fps. "causal": at max(0, 8 f - 7) / fps, the
            first pixel frame it covers, because the first latent frame covers one frame only.
        latent_frames, latent_height, latent_width: Latent cells.
        frame_rates: [B] frames per second of each clip, above 0.
        device: Where the result shall lie; where the frame rates do if it is not given.

    Source: rotary positions of the LTX-Video pipelines; plain up to 0.9.1, causal from 0.9.5.
    """
    size = (latent_frames, latent_height, latent_width)
    device = device or frame_rates.device
    if frame_rates.device.type != "cpu":
        return _coordinates(positions, size, frame_rates.to(device, torch.float32))
    return _remembered(positions, size, tuple(frame_rates.tolist()), device)


@lru_cache(maxsize=_KEPT)
def _remembered(
    positions: Positions, size: tuple[int, int, int], rates: tuple[float, ...], device: torch.device
) -> Tensor:
    # A tensor made in inference mode could not be used in training.
    with torch.inference_mode(False), torch.no_grad():
        wanted = torch.tensor(rates[:1] if len(set(rates)) == 1 else rates, dtype=torch.float32)
        # Sent, not made there: the host does not wait for the device.
        return _coordinates(positions, size, wanted.to(device, non_blocking=True)).expand(len(rates), -1, -1)


def _coordinates(positions: Positions, size: tuple[int, int, int], rates: Tensor) -> Tensor:
    grid = _pixel_grid(positions, *size, rates.device)
    # The same roundings as the reference pipelines, so that positions are equal to the last bit.
    per_unit = (TEMPORAL if positions == "plain" else 1.0) / rates
    seconds = grid[0] * per_unit[:, None]
    space = grid[1:].expand(len(rates), -1, -1)
    return torch.cat([seconds[:, None], space], dim=1)


def _pixel_grid(positions: Positions, frames: int, height: int, width: int, device: torch.device) -> Tensor:
    """[3, S]: latent frame number (plain) or pixel frame number (causal), pixel row, pixel column."""
    times = torch.arange(frames, dtype=torch.float32, device=device)
    if positions == "causal":
        times = (TEMPORAL * times + 1 - TEMPORAL).clamp(min=0)
    rows = SPATIAL * torch.arange(height, dtype=torch.float32, device=device)
    columns = SPATIAL * torch.arange(width, dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(times, rows, columns, indexing="ij")).flatten(1)
