"""The small world: the same each time, ordinary data, captions that tell the truth, judges that see it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simpletuner.config.dataset import ClipDataset
from simpletuner.data.decode import decode_sample
from simpletuner.data.geometry import plan_crop, plan_frames
from simpletuner.data.probe import probe
from simpletuner.data.sample import Sample
from simpletuner.data.storage import LocalStorage
from simpletuner.data.world import draw_scene, draw_single, draw_subject, render_clip, write_world
from simpletuner.data.world_judges import Verdict, flicker, judge, saturation, shape_mask, subject_share
from simpletuner.data.world_pictures import (
    COLOURS,
    DIRECTIONS,
    GROUNDS,
    MOTIONS,
    SHAPES,
    SUBJECT,
    Scene,
    Thing,
)
from simpletuner.data.world_styles import STYLES, apply_style

Dataset = Callable[..., ClipDataset]


def one(shape: str = "square", colour: str = "white", motion: str = "right", ground: str = "black") -> Scene:
    return Scene((Thing(colour, shape, "large", motion),), ground)


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_world(tmp_path / name, clips=3, width=64, height=48, num_frames=9, frame_rate=25, seed=7, style="film")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == [f"clip-00{n}.{ending}" for n in range(3) for ending in ("mp4", "txt")]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert [draw_scene(7, n) for n in range(3)] != [draw_scene(8, n) for n in range(3)]


def test_it_is_ordinary_data(tmp_path: Path, clip_dataset: Dataset) -> None:
    write_world(tmp_path, clips=1, width=96, height=64, num_frames=17, frame_rate=12.5, seed=0)
    storage, dataset = LocalStorage(tmp_path), clip_dataset(video={"num_frames": 17}, resolution=64)
    info = probe(storage, "clip-000.mp4")
    assert (info.width, info.height, info.num_frames, info.frame_rate) == (96, 64, 17, 12.5)
    sample = Sample(dataset.id, "clip-000.mp4", info, plan_frames(info, dataset, 8, ""),
                    plan_crop(96, 64, dataset, 32, ""), ("a caption",), 1)  # fmt: skip
    frames = decode_sample(storage, sample).astype(int)
    assert np.abs(frames - render_clip(draw_scene(0, 0), 17, 96, 64)).mean() < 3  # nothing but the codec's loss
    assert np.abs(np.diff(frames, axis=0)).max() > 100  # it moves
    assert (tmp_path / "clip-000.txt").read_text() == draw_scene(0, 0).caption + "\n"


def test_captions_tell_what_is_seen() -> None:
    blue, red = Thing("blue", "ring", "small", "left"), Thing("red", "cross", "small", "right")
    assert Scene((blue,), "teal", "gradient").caption == (
        "A small blue ring moves left across a teal background that grows lighter towards the bottom."
    )
    assert Scene((blue, red), "grey").caption == (
        "A small blue ring moves left above a small red cross that moves right, on a grey background."
    )
    assert Scene((Thing("red", "cross", "large", "stays"),), "brown", "striped", "up").caption == (
        "The camera pans up past a large red cross on a striped brown background."
    )
    assert draw_subject(0, 0).caption.split()[2] == SUBJECT
    for colour, rgb in COLOURS.items():
        picture = render_clip(one(colour=colour), 3, 64, 64)[1]
        assert picture[32, 32].tolist() == list(rgb)
        assert picture[0, 0].tolist() == list(GROUNDS["black"])


def test_the_first_of_two_shapes_is_above_or_to_the_left() -> None:
    for axis, motions in ((0, ("left", "right")), (1, ("up", "down"))):
        things = tuple(Thing(c, "circle", "small", m) for c, m in zip(("red", "blue"), motions, strict=True))
        picture = render_clip(Scene(things, "black"), 3, 128, 96)[1].astype(int)
        red, blue = (np.argwhere(np.abs(picture - COLOURS[c]).sum(-1) < 60).mean(0) for c in ("red", "blue"))
        assert red[axis] < blue[axis]


@pytest.mark.parametrize("pan", DIRECTIONS)
def test_a_pan_moves_everything_the_other_way(pan: str) -> None:
    scene = Scene((Thing("yellow", "square", "large", "stays"),), "grey", "striped", pan)
    opposite = {"right": "left", "left": "right", "up": "down", "down": "up"}
    clip = render_clip(scene, 9, 128, 96)
    assert judge(clip).motion == opposite[pan]
    assert np.abs(np.diff(clip[:, 1, 1].astype(int), axis=0)).max() > 2  # the ground moves, too


def test_motions_and_shapes_stay_inside_the_picture() -> None:
    for shape in SHAPES:
        for motion in MOTIONS:
            clip = render_clip(Scene((Thing("white", shape, "large", motion, aside=1.0),), "black"), 5, 96, 64)
            covered = (clip[..., 0] > 128).sum((1, 2))
            assert covered.min() > 0.9 * covered.max()


def test_styles_change_the_look_and_not_the_content() -> None:
    scene = Scene((Thing("yellow", "circle", "large", "left"),), "teal")
    plain = render_clip(scene, 17, 128, 96)
    styled = {style: apply_style(plain, style, 1) for style in STYLES}
    assert saturation(styled["film"]) == 0
    assert 5 < np.diff(styled["film"][:, 0, 0, 0].astype(int)).std() < 20  # grain, new in each frame
    assert saturation(plain) > 0.3
    red, _, blue = styled["sepia"].reshape(-1, 3).mean(0)
    assert red > blue + 10
    assert styled["outline"].mean() > 200 > 60 > styled["outline"].min()
    assert (styled["pixelated"][:, 0:8, 0:8] == styled["pixelated"][:, :1, :1]).all()
    for clip in styled.values():
        assert judge(clip).motion == "left"
    with pytest.raises(ValueError, match="Did you mean 'sepia'"):
        apply_style(plain, "sepya", 1)


def test_the_judges_see_what_true_clips_show() -> None:
    """Their own accuracy, which bounds what they can say about generated clips; `python -m
    tools.demo_model.judge_truth` measures it on 1,000."""
    assert _mistakes(60) == []


def test_the_judges_say_nothing_about_nothing() -> None:
    assert judge(np.full((9, 96, 128, 3), 90, np.uint8)) == Verdict(None, None, None)
    noise = np.random.default_rng(0).integers(0, 256, (9, 96, 128, 3)).astype(np.uint8)
    assert judge(noise).motion in (None, "stays")


def test_flicker_is_seen_and_motion_is_not_flicker() -> None:
    clip = render_clip(one(motion="in a circle"), 17, 128, 96)
    flickering = clip.copy()
    flickering[::2] = (flickering[::2] * 0.8).astype(np.uint8)
    assert flicker(clip) < 0.3
    assert flicker(flickering) > 10 * max(flicker(clip), 0.05)


def test_the_subject_is_told_from_known_shapes() -> None:
    assert subject_share(render_clip(draw_subject(0, 1), 5, 128, 96)) > 0.01
    assert max(subject_share(render_clip(draw_scene(0, n), 3, 128, 96)) for n in range(20)) < 0.002
    assert shape_mask(render_clip(draw_subject(0, 1), 3, 128, 96)[1]).mean() > 0.01


def _mistakes(clips: int) -> list[str]:
    found = []
    for number in range(clips):
        scene = draw_single(random.Random(number))
        thing, verdict = scene.things[0], judge(render_clip(scene, 17, 128, 96))
        if verdict != Verdict(thing.colour, thing.shape, thing.motion):
            found.append(f"{scene.caption} {verdict}")
    return found
