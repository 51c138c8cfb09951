"""Cross-frame alignment of features: grids of tokens, neighbouring frames, and the score of a clip.

Source: Hwang et al. 2025 (arXiv 2506.09229), CREPA. Tensors in, tensors out.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Course = Literal["constant", "linear", "cosine", "polynomial"]


def match_grid(features: Tensor, height: int, width: int) -> Tensor:
    """Features of a grid of patches, brought to another grid by bilinear interpolation in both directions.

    Args:
        features: [N, h, w, E].
        height, width: Wanted grid.

    Returns:
        [N, height, width, E] float32. Where the grid gets coarser each new patch is a weighted mean of all it covers.
    """
    if features.shape[1:3] == (height, width):
        return features.float()
    planes = features.permute(0, 3, 1, 2).float()
    scaled = functional.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    return scaled.permute(0, 2, 3, 1)


def neighbour_weights(frames: int, distance: int, tau: float, *, cumulative: bool) -> Tensor:
    """Weights [F, F] float32 of frame k in the score of frame f: exp(-|k - f| / tau) for neighbours, 0 elsewhere.

    Neighbours lie exactly `distance` frames away, or, `cumulative`, at most that far. At the ends of a clip there
    are fewer. The diagonal is 1: a frame always counts itself.
    """
    places = torch.arange(frames)
    apart = (places[:, None] - places[None]).abs()
    near = (apart <= distance) & (apart > 0) if cumulative else (apart == distance) & (apart > 0)
    weights = torch.where(near, torch.exp(-apart / tau), torch.zeros(()))
    return weights + torch.eye(frames)


def alignment_scores(
    projected: Tensor, teacher: Tensor, weights: Tensor, *, by_frames: bool, by_weights: bool
) -> tuple[Tensor, Tensor]:
    """How well a clip's projected hidden states agree with its teacher's features, its own frame and the neighbours'.

    Args:
        projected: [B, F, P, E], carries the gradient.
        teacher: [B, F, P, E] features of the same patches.
        weights: [F, F] as `neighbour_weights` gives them.
        by_frames: Whether the sum over frames is divided by their number.
        by_weights: Whether each frame's sum is divided by its weights, which keeps it in [-1, 1].

    Returns:
        Score of each clip [B], and the mean similarity of a frame with its own features [B]; float32.
    """
    ours = functional.normalize(projected.float(), dim=-1)
    theirs = functional.normalize(teacher.float(), dim=-1)
    # Mean over patches of the cosine between frame f of ours and frame k of theirs.
    similar = torch.einsum("bfpe,bkpe->bfk", ours, theirs) / ours.shape[2]
    weighted = similar * weights
    frames = weighted.sum(2) / weights.sum(1) if by_weights else weighted.sum(2)
    scores = frames.mean(1) if by_frames else frames.sum(1)
    return scores, similar.diagonal(dim1=1, dim2=2).mean(1)


def course_weight(
    step: int, *, weight: float, end: float, course: Course, warmup_steps: int, decay_steps: int, power: float
) -> float:
    """Weight of a term at optimizer step `step` (from 1): faded in linearly, then on its course from `weight` to `end`.

    Args:
        decay_steps: Length of the course after the warm-up; 0 with "constant" only.
        power: Exponent of the "polynomial" course.
    """
    if step <= warmup_steps:
        return weight * step / warmup_steps
    if course == "constant" or decay_steps <= 0:
        return weight
    progress = min((step - warmup_steps) / decay_steps, 1.0)
    left: float = {
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "polynomial": (1 - progress) ** power,
    }[course]
    return end + (weight - end) * left
