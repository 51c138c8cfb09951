"""A small world of moving shapes: clips made on the spot, each with a caption that tells all of it.

Serves the demo and tests. Everything a clip shows follows from the seed and its number; the files are
ordinary mp4 and txt, so they walk the same way as anybody's clips.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from simpletuner.core.files import staged_file, write_atomic
from simpletuner.runtime.seeds import stream_seed

Picture = NDArray[np.uint8]
Plane = NDArray[np.float64]

COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 132, 30),
    "yellow": (250, 211, 60),
    "green": (46, 160, 80),
    "blue": (42, 96, 214),
    "purple": (132, 70, 190),
    "white": (245, 245, 245),
}
GROUNDS = {"black": (12, 12, 16), "grey": (110, 112, 118), "brown": (96, 66, 44), "teal": (20, 92, 98)}
SHAPES = ("circle", "square", "triangle", "ring")
# Direction of a motion: columns to the right, rows down, per unit of way.
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
MOTIONS = (*DIRECTIONS, "in a circle")
EDGE_SOFTNESS_PX = 0.75  # half the width of a smoothed edge


@dataclass(frozen=True)
class Scene:
    """All that one clip shows."""

    colour: str
    shape: str
    ground: str
    gradient: bool
    motion: str

    @property
    def caption(self) -> str:
        ground = f"a {self.ground} background" + (" that grows lighter towards the bottom" if self.gradient else "")
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article.capitalize()} {self.colour} {self.shape} moves {self.motion} across {ground}."


def write_world(
    folder: Path, *, clips: int, width: int, height: int, num_frames: int, frame_rate: float, seed: int
) -> None:
    """Write `clips` captioned clips into `folder` as `clip-000.mp4` and `clip-000.txt` and so on.

    Args:
        folder: Where they go; created when missing, clips of the same name are replaced.
        clips: How many.
        width: Even number of pixels.
        height: Even number of pixels.
        num_frames: Frames of each clip.
        frame_rate: Frames per second.
        seed: Equal seeds give equal clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(clips):
        scene = draw_scene(seed, number)
        pictures = [render(scene, moment / max(1, num_frames - 1), width, height) for moment in range(num_frames)]
        _write_clip(folder / f"clip-{number:03d}.mp4", pictures, frame_rate)
        write_atomic(folder / f"clip-{number:03d}.txt", scene.caption + "\n")


def draw_scene(seed: int, number: int) -> Scene:
    """The scene of clip `number`."""
    dice = random.Random(stream_seed(seed, "world", number))  # noqa: S311 - nothing here is secret
    return Scene(
        colour=dice.choice(list(COLOURS)),
        shape=dice.choice(SHAPES),
        ground=dice.choice(list(GROUNDS)),
        gradient=dice.random() < 0.5,
        motion=dice.choice(MOTIONS),
    )


def render(scene: Scene, progress: float, width: int, height: int) -> Picture:
    """The scene at `progress` in [0, 1] of its motion: uint8 [height, width, 3]."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    radius = 0.2 * min(width, height)
    column, row = _place(scene.motion, progress, width, height, radius)
    inside = _coverage(scene.shape, columns - column, rows - row, radius)[..., None]
    ground = np.array(GROUNDS[scene.ground], dtype=np.float64) * np.ones((height, width, 1))
    if scene.gradient:
        ground = ground + (255 - ground) * (0.35 * rows / max(1, height - 1))[..., None]
    picture = ground * (1 - inside) + np.array(COLOURS[scene.colour], dtype=np.float64) * inside
    return np.rint(picture).astype(np.uint8)


def _place(motion: str, progress: float, width: int, height: int, radius: float) -> tuple[float, float]:
    """Column and row of the shape's middle."""
    middle = ((width - 1) / 2, (height - 1) / 2)
    reach = (middle[0] - radius, middle[1] - radius)
    if motion == "in a circle":
        angle, way = 2 * math.pi * progress, 0.8 * min(reach)
        return middle[0] + way * math.cos(angle), middle[1] + way * math.sin(angle)
    direction = DIRECTIONS[motion]
    way = 2 * progress - 1
    return middle[0] + direction[0] * way * reach[0], middle[1] + direction[1] * way * reach[1]


def _coverage(shape: str, across: Plane, down: Plane, radius: float) -> Plane:
    """How much of each pixel the shape covers, in [0, 1], from its signed distance to the edge."""
    if shape == "circle":
        distance = np.hypot(across, down) - radius
    elif shape == "ring":
        distance = np.abs(np.hypot(across, down) - 0.75 * radius) - 0.25 * radius
    elif shape == "square":
        distance = np.maximum(np.abs(across), np.abs(down)) - 0.85 * radius
    else:  # a triangle that points up: below two slopes and above its base
        slope = (2 * np.abs(across) - down - radius) / math.sqrt(5)
        distance = np.maximum(slope, down - 0.8 * radius)
    return np.clip(0.5 - distance / (2 * EDGE_SOFTNESS_PX), 0, 1)


def _write_clip(path: Path, pictures: list[Picture], frame_rate: float) -> None:
    height, width, _ = pictures[0].shape
    with staged_file(path) as staging, av.open(str(staging), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(frame_rate).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # One thread writes the same bytes on any machine, and x264's macroblock tree does not (it reads
        # beyond small pictures); quality 16 is visually clean and still small.
        stream.options = {"crf": "16", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
