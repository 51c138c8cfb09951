"""Looks for the small world's clips, each something an adapter can learn: how a scene looks, never what it shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simpletuner.core.catalog import did_you_mean

Picture = NDArray[np.uint8]
Frames = NDArray[np.float32]

STYLES = ("film", "sepia", "outline", "pixelated")
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)
_GRAIN = 7.0  # standard deviation of film grain, of 255
_SEPIA_DARK, _SEPIA_LIGHT = np.array((38, 22, 10), np.float32), np.array((255, 232, 190), np.float32)
_PAPER, _INK = np.array((244, 240, 228), np.float32), np.array((24, 28, 60), np.float32)
_BLOCK_PX = 8


def apply_style(pictures: Picture, style: str, seed: int) -> Picture:
    """Frames uint8 [F, H, W, 3] in another look; `seed` decides the grain, where there is any.

    Raises:
        ValueError: If there is no such style.
    """
    frames = pictures.astype(np.float32)
    grey = frames @ _LUMA
    if style == "film":
        grain = np.random.default_rng(seed).normal(0, _GRAIN, grey.shape).astype(np.float32)
        styled = (grey + grain)[..., None].repeat(3, -1)
    elif style == "sepia":
        styled = _SEPIA_DARK + (_SEPIA_LIGHT - _SEPIA_DARK) * (grey / 255)[..., None]
    elif style == "outline":
        styled = _PAPER + (_INK - _PAPER) * _edges(frames)[..., None]
    elif style == "pixelated":
        styled = _blocks(frames)
    else:
        raise ValueError(f"no style '{style}'{did_you_mean(style, list(STYLES))}; there are {', '.join(STYLES)}")
    return np.asarray(np.rint(styled.clip(0, 255)), np.uint8)


def _edges(frames: Frames) -> Frames:
    """How strongly colours change at each pixel, in [0, 1]: [F, H, W]."""
    down, across = np.gradient(frames, axis=(1, 2))
    strength = np.sqrt((down**2 + across**2).sum(-1)) / 40
    return np.asarray(np.clip(strength - 0.15, 0, 1), np.float32)


def _blocks(frames: Frames) -> Frames:
    """Each block of 8 x 8 pixels in its average colour; a rest at the right and bottom keeps its own average."""
    _, height, width, _ = frames.shape
    rows, columns = np.arange(0, height, _BLOCK_PX), np.arange(0, width, _BLOCK_PX)
    sums = np.add.reduceat(np.add.reduceat(frames, rows, axis=1), columns, axis=2)
    tall, wide = np.diff(np.append(rows, height)), np.diff(np.append(columns, width))
    average = sums / (tall[:, None] * wide[None, :])[None, ..., None]
    return np.asarray(average.repeat(tall, axis=1).repeat(wide, axis=2), np.float32)
