"""Says from the pixels what a clip of the small world shows: plain image analysis, nothing learned.

The judges know the world's colours and shapes, not its code for drawing. They serve tests and the table of
what the demo's model can do; their own accuracy on true clips is measured in tests/unit/data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simpletuner.data.world_pictures import COLOURS, SHAPES, SUBJECT_COLOURS, coverage

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_FAR = 55.0  # distance in RGB from which a pixel does not belong to the ground any more
_SMALLEST = 0.004  # share of the picture that a shape covers at least
_BOX = 24  # side of the box in which shapes are compared
_CLEAR_WAY = 0.12  # way of a shape, as a share of the shorter side, from which it has a direction


@dataclass(frozen=True)
class Verdict:
    """What is seen in a clip with one shape; None where nothing can be told.

    Attributes:
        colour: A name of `world_pictures.COLOURS`.
        shape: A name of `world_pictures.SHAPES`.
        motion: "right", "left", "down", "up", "in a circle" or "stays".
    """

    colour: str | None
    shape: str | None
    motion: str | None


def judge(clip: Picture) -> Verdict:
    """Look at a clip uint8 [F, H, W, 3] that shows one shape."""
    masks = [shape_mask(picture) for picture in clip]
    seen = [number for number, mask in enumerate(masks) if mask.mean() >= _SMALLEST]
    if len(seen) < len(clip) / 2:
        return Verdict(None, None, None)
    colour = _vote([_colour(clip[n], masks[n]) for n in seen])
    shape = _vote([_shape(masks[n]) for n in seen])
    return Verdict(colour, shape, _motion([_middle(masks[n]) for n in seen], min(clip.shape[1:3])))


def shape_mask(picture: Picture) -> Mask:
    """Pixels [H, W] of the shape: far from the ground, and one piece with the largest such area.

    The ground is what the border of the picture shows; a stripe or gradient is told from a shape because each
    pixel is compared with the nearest of the border's colours.
    """
    values = picture.astype(np.float32)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    palette = _main_colours(border)
    distance = np.sqrt(((values[:, :, None] - palette) ** 2).sum(-1)).min(-1)
    return _largest_piece(distance > _FAR)


def saturation(clip: Picture) -> float:
    """Mean of (max - min) / 255 over the channels of all pixels: 0 for a grey clip."""
    values = clip.astype(np.float32)
    return float((values.max(-1) - values.min(-1)).mean() / 255)


def flicker(clip: Picture) -> float:
    """How much brightness jumps back and forth: mean absolute second difference over time of the picture's
    mean colour, of 255. A steady motion has none, whatever its speed."""
    means = clip.astype(np.float32).mean((1, 2))
    return float(np.abs(np.diff(means, n=2, axis=0)).mean()) if len(clip) > 2 else 0.0


def subject_share(clip: Picture) -> float:
    """Share of pixels that have the petals' colour of the subject."""
    distance = np.linalg.norm(clip.astype(np.float32) - np.array(SUBJECT_COLOURS[0], np.float32), axis=-1)
    return float((distance < _FAR).mean())


def _main_colours(border: NDArray[np.float32]) -> NDArray[np.float32]:
    """The colours [K, 3] that the border shows often: centres of occupied cells of a coarse grid."""
    _cells, inverse, counts = np.unique((border // 24).astype(int), axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    chosen = np.flatnonzero(counts >= max(2, 0.02 * len(border)))
    chosen = chosen if len(chosen) else np.array([counts.argmax()])
    means = np.stack([border[inverse == cell].mean(0) for cell in chosen])
    # A shape that touches the border adds its own colour, which is far from the most frequent one and rarer.
    weights = counts[chosen] / len(border)
    main = means[weights.argmax()]
    ground = [m for m, w in zip(means, weights, strict=True) if _same_hue(m, main) or w > 0.45]
    return np.stack(ground)


def _same_hue(colour: NDArray[np.float32], main: NDArray[np.float32]) -> bool:
    """Whether `colour` is `main` made lighter or darker by light that has no hue of its own."""
    toward_white = np.linspace(-0.5, 0.8, 53)[:, None]
    line = main + (255 - main) * toward_white
    return bool(np.linalg.norm(line - colour, axis=1).min() < 25)


def _largest_piece(mask: Mask) -> Mask:
    """The largest connected piece, found by growing row runs together."""
    labels = np.zeros(mask.shape, np.int32)
    parents = [0]

    def root(label: int) -> int:
        while parents[label] != label:
            label = parents[label]
        return label

    for row in range(mask.shape[0]):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mask[row], [False]]).astype(np.int8)))
        for start, end in edges.reshape(-1, 2):
            above = {root(int(n)) for n in np.unique(labels[row - 1, start:end])} - {0} if row else set()
            label = min(above) if above else len(parents)
            if not above:
                parents.append(label)
            for other in above:
                parents[other] = label
            labels[row, start:end] = label
    if len(parents) == 1:
        return mask
    roots = np.array([root(n) for n in range(len(parents))])[labels]
    sizes = np.bincount(roots.ravel())
    sizes[0] = 0
    return np.asarray(roots == sizes.argmax())


def _colour(picture: Picture, mask: Mask) -> str:
    """The name whose colour is nearest to the median of the shape."""
    median = np.median(picture[mask].astype(np.float32), axis=0)
    names = list(COLOURS)
    return names[int(np.argmin([np.linalg.norm(median - np.array(COLOURS[n], np.float32)) for n in names]))]


def _shape(mask: Mask) -> str:
    """The known shape that overlaps most with the mask when both are stretched to one box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    down = np.linspace(rows[0], rows[-1], _BOX).round().astype(int)
    across = np.linspace(columns[0], columns[-1], _BOX).round().astype(int)
    box = mask[np.ix_(down, across)]
    return max(SHAPES, key=lambda name: float((box & _box_of(name)).sum() / (box | _box_of(name)).sum()))


@lru_cache(maxsize=16)
def _box_of(shape: str) -> Mask:
    """A known shape, drawn large and cut out."""
    axis = np.arange(-64, 65, dtype=np.float32)
    mask = coverage(shape, axis[None, :], axis[:, None], 60.0) > 0.5
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    down, across = (np.linspace(line[0], line[-1], _BOX).round().astype(int) for line in (rows, columns))
    return np.asarray(mask[np.ix_(down, across)])


def _middle(mask: Mask) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(columns.mean()), float(rows.mean())


def _motion(way: list[tuple[float, float]], side: int) -> str:
    points = np.array(way)
    moved = points[-1] - points[0]
    spread = np.ptp(points, axis=0)
    if np.abs(moved).max() >= max(_CLEAR_WAY * side, 0.5 * spread.max()):
        across, down = moved
        if abs(across) >= abs(down):
            return "right" if across > 0 else "left"
        return "down" if down > 0 else "up"
    return "in a circle" if spread.min() >= _CLEAR_WAY * side else "stays"


def _vote(names: list[str]) -> str:
    kinds, counts = np.unique(names, return_counts=True)
    return str(kinds[counts.argmax()])
