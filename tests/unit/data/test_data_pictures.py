"""The contact sheet shows what is trained."""

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
from simpletuner.data.geometry import plan_crop, plan_frames
from simpletuner.data.probe import probe
from simpletuner.data.sample import Sample
from simpletuner.data.storage import LocalStorage

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
