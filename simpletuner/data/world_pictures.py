"""What the small world can show, what it is called, and how it is drawn.

Scenes are plain values; drawing knows no randomness, files or styles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]  # float32 in all that is large

COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 134, 20),
    "yellow": (250, 220, 50),
    "green": (40, 170, 70),
    "blue": (45, 90, 225),
    "purple": (140, 60, 190),
    "white": (245, 245, 245),
}
GROUNDS = {"black": (12, 12, 16), "grey": (110, 112, 118), "brown": (92, 60, 36), "teal": (14, 88, 92)}
TEXTURES = {"plain": "", "gradient": " that grows lighter towards the bottom", "striped": ""}
SHAPES = ("circle", "square", "triangle", "ring", "cross")
SIZES = {"small": 0.17, "large": 0.26}  # radius as a share of the shorter side
SUBJECT = "blorp"  # the new shape of the subject data set: a flower no caption of the world knows
SUBJECT_COLOURS = ((255, 105, 180), (250, 220, 50))  # petals, centre
# Direction of a motion: columns to the right, rows down, per unit of way.
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
MOTIONS = (*DIRECTIONS, "in a circle")
EDGE_SOFTNESS_PX = 1.0  # half the width of a smoothed edge
_STRIPES = 2  # light stripes across the width of a picture
_STRIPE_LIGHT = 0.18  # how much lighter their middle is
_WAY = 0.55  # of the room between the edges, a shape's way uses this share: gentle enough for 8 frames per latent
_PAN_WAY = 0.3  # way of the camera, as a share of the picture's side


@dataclass(frozen=True)
class Thing:
    """One shape.

    Attributes:
        colour: A name of `COLOURS`; empty for the subject, which has its own.
        shape: A name of `SHAPES`, or `SUBJECT`.
        size: A name of `SIZES`.
        motion: A name of `MOTIONS`, or "stays".
        aside: Where in [-1, 1] its way lies beside the middle; not told by the caption.
    """

    colour: str
    shape: str
    size: str
    motion: str
    aside: float = 0.0

    @property
    def name(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Scene:
    """All that one clip shows.

    Attributes:
        things: One shape, or two that move in lanes of their own.
        ground: A name of `GROUNDS`.
        texture: A name of `TEXTURES`.
        pan: Where the camera moves (a name of `DIRECTIONS`), or None.
    """

    things: tuple[Thing, ...]
    ground: str
    texture: str = "plain"
    pan: str | None = None

    @property
    def caption(self) -> str:
        """One sentence (two with a second shape or a pan) that tells everything but `aside`."""
        striped = "striped " if self.texture == "striped" else ""
        ground = f"a {striped}{self.ground} background{TEXTURES[self.texture]}"
        first = self.things[0]
        if self.pan is not None:
            return f"The camera pans {self.pan} past a {first.name} on {ground}."
        if len(self.things) == 1:
            return f"A {first.name} moves {first.motion} across {ground}."
        second = self.things[1]
        beside = "above" if first.motion in ("right", "left") else "to the left of"
        return f"A {first.name} moves {first.motion} {beside} a {second.name} that moves {second.motion}, on {ground}."


def render(scene: Scene, progress: NDArray[np.float64], width: int, height: int) -> Plane:
    """The scene at moments `progress` [F] in [0, 1] of its motion: float32 [F, height, width, 3] in [0, 255]."""
    moments = np.asarray(progress, np.float32).reshape(-1, 1, 1)
    rows = np.arange(height, dtype=np.float32).reshape(1, -1, 1)
    columns = np.arange(width, dtype=np.float32).reshape(1, 1, -1)
    shift = _shift(scene.pan, moments, width, height)
    picture = _draw_ground(scene, rows - shift[1], columns - shift[0], width, height)
    for number, thing in enumerate(scene.things):
        radius = SIZES[thing.size] * min(width, height)
        column, row = _place(thing, moments, width, height, radius, number if len(scene.things) > 1 else None)
        across, down = columns - column - shift[0], rows - row - shift[1]
        for shape, colour in _parts(thing):
            inside = coverage(shape, across, down, radius)[..., None]
            picture = picture * (1 - inside) + np.array(colour, np.float32) * inside
    return np.asarray(picture, np.float32)


def _shift(pan: str | None, moments: Plane, width: int, height: int) -> tuple[Plane, Plane]:
    """How far everything has moved because of the camera, in pixels: opposite to the camera."""
    right, down = DIRECTIONS[pan] if pan is not None else (0, 0)
    way = (0.5 - moments) * _PAN_WAY
    return way * right * width, way * down * height


def _draw_ground(scene: Scene, rows: Plane, columns: Plane, width: int, height: int) -> Plane:
    """[F, H, W, 3] in [0, 255]."""
    ground = np.array(GROUNDS[scene.ground], np.float32)
    light: Plane = np.zeros(np.broadcast_shapes(rows.shape, columns.shape), np.float32)
    if scene.texture == "gradient":
        light = light + 0.35 * rows / np.float32(max(1, height - 1))
    elif scene.texture == "striped":
        # Aslant, so that they tell of pans in both axes.
        phase = (columns / width + rows / height) * (2 * math.pi * _STRIPES)
        light = light + _STRIPE_LIGHT * (0.5 + 0.5 * np.sin(phase))
    return ground + (255 - ground) * light[..., None]


def _place(
    thing: Thing, moments: Plane, width: int, height: int, radius: float, lane: int | None
) -> tuple[Plane, Plane]:
    """Column and row of the shape's middle at each moment [F, 1, 1]; `lane` 0 or 1 when it shares the picture."""
    middle = ((width - 1) / 2, (height - 1) / 2)
    reach = (middle[0] - radius, middle[1] - radius)
    still = np.zeros_like(moments)
    if thing.motion == "in a circle":
        angle, wide = 2 * math.pi * moments, 0.6 * min(reach)
        return middle[0] + wide * np.cos(angle), middle[1] + wide * np.sin(angle)
    if thing.motion == "stays":
        return middle[0] + still, middle[1] + still
    right, down = DIRECTIONS[thing.motion]
    way = _WAY * (2 * moments - 1)
    # Alone, anywhere near the middle; with another shape, each in its half.
    side = None if lane is None else 2 * lane - 1
    across, along = (0.35 * thing.aside, 0.35 * thing.aside) if side is None else (0.57 * side, 0.95 * side)
    column: Plane = middle[0] + reach[0] * (way * right if right else still + across)
    row: Plane = middle[1] + reach[1] * (way * down if down else still + along)
    return column, row


def _parts(thing: Thing) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    if thing.shape == SUBJECT:
        return (("petals", SUBJECT_COLOURS[0]), ("centre", SUBJECT_COLOURS[1]))
    return ((thing.shape, COLOURS[thing.colour]),)


def coverage(shape: str, across: Plane, down: Plane, radius: float) -> Plane:
    """How much of each pixel the shape covers, in [0, 1], from its signed distance to the edge."""
    if shape == "circle":
        distance: Plane = np.hypot(across, down) - radius
    elif shape == "ring":
        distance = np.abs(np.hypot(across, down) - 0.74 * radius) - 0.26 * radius
    elif shape == "square":
        distance = np.maximum(np.abs(across), np.abs(down)) - 0.85 * radius
    elif shape == "cross":
        long, short = np.maximum(np.abs(across), np.abs(down)), np.minimum(np.abs(across), np.abs(down))
        distance = np.maximum(long - radius, short - 0.33 * radius)
    elif shape == "petals":
        angle = np.arctan2(across, -down)
        distance = np.hypot(across, down) - radius * (0.78 + 0.22 * np.cos(5 * angle))
    elif shape == "centre":
        distance = np.hypot(across, down) - 0.36 * radius
    else:  # a triangle that points up: below two slopes and above its base
        slope = (2 * np.abs(across) - down - radius) / math.sqrt(5)
        distance = np.maximum(slope, down - 0.8 * radius)
    return np.asarray(np.clip(0.5 - distance / (2 * EDGE_SOFTNESS_PX), 0, 1))
