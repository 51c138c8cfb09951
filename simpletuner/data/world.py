"""A small world of moving shapes: clips made on the spot, each with a caption that tells all of it.

Serves the demo, the training of its small model (tools/demo_model) and tests. Everything a clip shows
follows from the seed and its number; the files are ordinary mp4 and txt, so they walk the same way as
anybody's clips. `world_pictures.py` draws a scene, `world_styles.py` changes how it looks and
`world_judges.py` says from the pixels what a clip shows.
"""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from simpletuner.core.files import staged_file, write_atomic
from simpletuner.data.world_pictures import (
    COLOURS,
    DIRECTIONS,
    GROUNDS,
    MOTIONS,
    SHAPES,
    SIZES,
    SUBJECT,
    Scene,
    Thing,
    render,
)
from simpletuner.data.world_styles import apply_style
from simpletuner.runtime.seeds import stream_seed

Picture = NDArray[np.uint8]
PAIR_SHARE, PAN_SHARE = 0.15, 0.1  # of all scenes; the others show one shape that moves


def write_world(
    folder: Path,
    *,
    clips: int,
    width: int,
    height: int,
    num_frames: int,
    frame_rate: float,
    seed: int,
    style: str | None = None,
    subject: bool = False,
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
        style: A name of `world_styles.STYLES`: all clips look like that, which their captions do not tell.
        subject: Each clip shows the new shape with the new word (`SUBJECT`) instead of known ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(clips):
        scene = draw_subject(seed, number) if subject else draw_scene(seed, number)
        pictures = render_clip(scene, num_frames, width, height)
        if style is not None:
            pictures = apply_style(pictures, style, stream_seed(seed, "style", number))
        _write_clip(folder / f"clip-{number:03d}.mp4", pictures, frame_rate)
        write_atomic(folder / f"clip-{number:03d}.txt", scene.caption + "\n")


def draw_scene(seed: int, number: int) -> Scene:
    """The scene of clip `number`: one moving shape, two of them, or a camera that pans past a shape."""
    dice = random.Random(stream_seed(seed, "world", number))  # noqa: S311 - nothing here is secret
    kind = dice.random()
    if kind < PAIR_SHARE:
        return _pair(dice)
    if kind < PAIR_SHARE + PAN_SHARE:
        thing, (ground, texture) = _thing(dice, motion="stays"), _ground(dice, ("striped",))
        return Scene((thing,), ground, texture, dice.choice(list(DIRECTIONS)))
    return draw_single(dice)


def draw_single(dice: random.Random) -> Scene:
    """A scene of one shape that moves."""
    return Scene((_thing(dice),), *_ground(dice))


def draw_subject(seed: int, number: int) -> Scene:
    """A scene of the new shape."""
    dice = random.Random(stream_seed(seed, "world.subject", number))  # noqa: S311
    thing = Thing("", SUBJECT, dice.choice(list(SIZES)), dice.choice(MOTIONS), dice.uniform(-1, 1))
    return Scene((thing,), *_ground(dice))


def render_clip(scene: Scene, num_frames: int, width: int, height: int) -> Picture:
    """All frames of a scene: uint8 [num_frames, height, width, 3]."""
    progress = np.arange(num_frames) / max(1, num_frames - 1)
    return np.rint(render(scene, progress, width, height)).astype(np.uint8)


def _thing(dice: random.Random, motion: str | None = None, size: str | None = None, shape: str | None = None) -> Thing:
    return Thing(
        colour=dice.choice(list(COLOURS)),
        shape=shape or dice.choice(SHAPES),
        size=size or dice.choice(list(SIZES)),
        motion=motion or dice.choice(MOTIONS),
        aside=dice.uniform(-1, 1),
    )


def _ground(
    dice: random.Random, textures: tuple[str, ...] = ("plain", "plain", "gradient", "striped")
) -> tuple[str, str]:
    return dice.choice(list(GROUNDS)), dice.choice(textures)


def _pair(dice: random.Random) -> Scene:
    """Two small shapes of different colours, each in its own lane."""
    axis = dice.choice((("right", "left"), ("down", "up")))
    first, second = (_thing(dice, motion=dice.choice(axis), size="small") for _ in range(2))
    while second.colour == first.colour:
        second = _thing(dice, motion=second.motion, size="small")
    return Scene((first, second), *_ground(dice, ("plain", "gradient")))


def _write_clip(path: Path, pictures: Picture, frame_rate: float) -> None:
    _, height, width, _ = pictures.shape
    with staged_file(path) as staging, av.open(str(staging), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(frame_rate).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # One thread writes the same bytes on any machine, and x264's macroblock tree does not (it reads
        # beyond small pictures); quality 16 is visually clean and still small.
        stream.options = {"crf": "16", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
