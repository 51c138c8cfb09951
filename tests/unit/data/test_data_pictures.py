"""The contact sheet shows what is trained; the small world is the same each time and tells the truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from simpletuner.config.dataset import ClipDataset
from simpletuner.data.contact_sheet import (
    FRAME_HEIGHT_PX,
    FRAME_WIDTH_PX,
    GAP_PX,
    LINE_PX,
    MARGIN_PX,
    draw_contact_sheet,
)
from simpletuner.data.decode import decode_sample
from simpletuner.data.geometry import plan_crop, plan_frames
from simpletuner.data.probe import probe
from simpletuner.data.sample import Sample
from simpletuner.data.storage import LocalStorage
from simpletuner.data.world import COLOURS, GROUNDS, MOTIONS, SHAPES, Scene, draw_scene, render, write_world

Write = Callable[..., Path]
Dataset = Callable[..., ClipDataset]


def _sample(path: Path, dataset: ClipDataset, caption: str = "a caption") -> Sample:
    info = probe(LocalStorage(path.parent), path.name)
    return Sample(dataset.id, path.name, info, plan_frames(info, dataset, 8, path.name),
                  plan_crop(info.width, info.height, dataset, 32, path.name), (caption,), 1)  # fmt: skip


def test_the_sheet_shows_first_middle_and_last_frame(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    shades = {0: 30, 12: 130, 24: 230}
    write_clip(tmp_path / "a.mp4", frames=25, paint=lambda n: np.full((96, 128, 3), shades.get(n, 0), np.uint8))
    sample = _sample(tmp_path / "a.mp4", clip_dataset(video={"num_frames": 25}), "long caption " * 40)
    draw_contact_sheet([sample], {"test": LocalStorage(tmp_path)}, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    top = MARGIN_PX + 2 * LINE_PX + FRAME_HEIGHT_PX // 2
    middles = [MARGIN_PX + place * (FRAME_WIDTH_PX + GAP_PX) + FRAME_WIDTH_PX // 2 for place in range(3)]
    for left, shade in zip(middles, (30, 130, 230), strict=True):
        assert abs(float(sheet[top, left].mean()) - shade) < 8
    assert not list(tmp_path.glob(".staging-*"))


def test_the_sheet_is_bounded_and_survives_bad_files(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    good = _sample(write_clip(tmp_path / "a.mp4", frames=9), clip_dataset(video={"num_frames": 9}))
    gone = _sample(write_clip(tmp_path / "gone.mp4", frames=9), clip_dataset(video={"num_frames": 9}))
    (tmp_path / "gone.mp4").unlink()
    few = _sheet_size([good, gone] * 20, tmp_path, limit=3)
    many = _sheet_size([good, gone] * 20, tmp_path, limit=8)
    assert many[0] == few[0]
    assert many[1] > few[1]


def _sheet_size(samples: list[Sample], folder: Path, limit: int) -> tuple[int, int]:
    draw_contact_sheet(samples, {"test": LocalStorage(folder)}, folder / "sheet.png", limit=limit)
    with Image.open(folder / "sheet.png") as sheet:
        return sheet.size


def test_the_world_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_world(tmp_path / name, clips=3, width=64, height=48, num_frames=9, frame_rate=25, seed=7)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == [f"clip-00{n}.{ending}" for n in range(3) for ending in ("mp4", "txt")]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    write_world(tmp_path / "three", clips=3, width=64, height=48, num_frames=9, frame_rate=25, seed=8)
    assert [draw_scene(7, n) for n in range(3)] != [draw_scene(8, n) for n in range(3)]


def test_the_world_is_ordinary_data(tmp_path: Path, clip_dataset: Dataset) -> None:
    write_world(tmp_path, clips=1, width=96, height=64, num_frames=17, frame_rate=12.5, seed=0)
    info = probe(LocalStorage(tmp_path), "clip-000.mp4")
    assert (info.width, info.height, info.num_frames, info.frame_rate) == (96, 64, 17, 12.5)
    frames = decode_sample(LocalStorage(tmp_path), _sample(tmp_path / "clip-000.mp4", clip_dataset(
        video={"num_frames": 17}, resolution=64)))  # fmt: skip
    drawn = np.stack([render(draw_scene(0, 0), k / 16, 96, 64) for k in range(17)])
    assert np.abs(frames.astype(int) - drawn).mean() < 3  # nothing but the codec's loss
    assert np.abs(np.diff(frames.astype(int), axis=0)).max() > 100  # it moves
    assert (tmp_path / "clip-000.txt").read_text() == draw_scene(0, 0).caption + "\n"


def test_captions_tell_what_is_seen() -> None:
    scene = Scene("orange", "ring", "teal", gradient=True, motion="left")
    assert scene.caption == (
        "An orange ring moves left across a teal background that grows lighter towards the bottom."
    )
    for colour, rgb in COLOURS.items():
        picture = render(Scene(colour, "square", "black", False, "right"), 0.5, 64, 64)
        assert picture[32, 32].tolist() == list(rgb)
        assert picture[0, 0].tolist() == list(GROUNDS["black"])


def test_motions_go_where_they_say() -> None:
    def middle(motion: str, progress: float) -> tuple[float, float]:
        shown = render(Scene("white", "circle", "black", False, motion), progress, 96, 96)[..., 0] > 128
        rows, columns = np.nonzero(shown)
        return float(columns.mean()), float(rows.mean())

    for motion, (across, down) in {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}.items():
        first, last = middle(motion, 0), middle(motion, 1)
        assert np.sign(round(last[0] - first[0])) == across
        assert np.sign(round(last[1] - first[1])) == down
    assert np.allclose(middle("in a circle", 0), middle("in a circle", 1), atol=1e-6)


def test_every_shape_lies_inside_the_picture() -> None:
    for shape in SHAPES:
        for motion in MOTIONS:
            for progress in (0.0, 0.5, 1.0):
                picture = render(Scene("white", shape, "black", False, motion), progress, 96, 64)[..., 0]
                assert (picture > 128).sum() > 150
