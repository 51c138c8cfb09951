"""Clips nobody on this project made: all six become samples, at their true speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simpletuner.config.catalogs.families import Grid
from simpletuner.config.dataset import ClipDataset, VideoRules
from simpletuner.data.batch_rules import BatchRules
from simpletuner.data.buckets import check_buckets, describe_buckets
from simpletuner.data.contact_sheet import draw_contact_sheet
from simpletuner.data.decode import decode_sample
from simpletuner.data.find import FoundSamples, find_samples
from simpletuner.data.storage import LocalStorage

LTX_GRID = Grid(spatial=32, temporal=8, channels=128)


def find(folder: Path, *, num_frames: int = 25, framerate: float | None = None, sampling: str = "first",
         resolution: float = 128) -> FoundSamples:  # fmt: skip
    rules = VideoRules(num_frames=num_frames, frame_sampling=sampling)
    dataset = ClipDataset(id="real", instance_data_dir=str(folder), caption_strategy="textfile", resolution=resolution,
                          resolution_type="pixel_area", video=rules, framerate=framerate)  # fmt: skip
    return find_samples([dataset], {dataset.id: LocalStorage(folder)}, LTX_GRID, workers=4, emit=lambda event: None)


def test_all_six_are_trained_at_their_own_speed(real_clips: Path) -> None:
    found = find(real_clips)
    assert found.left_out == ()
    assert {sample.path.split("_")[0]: (sample.info.num_frames, round(sample.frames.frame_rate, 5))
            for sample in found.samples} == {
        "bigbuckbunny": (132, 25.0), "bikes": (250, 25.0), "carphone": (120, 29.97003), "hiker": (49, 8.0),
        "nasa": (325, 25.0), "pancake": (310, 30.0),
    }  # fmt: skip
    assert all(sample.frames.num_frames == 25 and len(sample.captions[0]) > 50 for sample in found.samples)
    assert check_buckets(found.samples, BatchRules()) == found.samples
    assert (
        sum(line.split(" clip")[0] == "1" for _, line in describe_buckets(found.samples, LTX_GRID, BatchRules())) == 1
    )


@pytest.mark.parametrize("sampling", ["first", "middle"])
def test_all_six_decode(real_clips: Path, sampling: str) -> None:
    for sample in find(real_clips, sampling=sampling).samples:
        frames = decode_sample(LocalStorage(real_clips), sample)
        assert frames.shape == (25, sample.crop.height, sample.crop.width, 3)
        assert frames.std() > 5
        assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 0.05  # no frozen picture


def test_the_guides_125_frames(real_clips: Path) -> None:
    found = find(real_clips, num_frames=125)
    assert {sample.path.split("_")[0]: sample.frames.num_frames for sample in found.samples} == {
        "bigbuckbunny": 121, "bikes": 121, "nasa": 121, "pancake": 121,
    }  # fmt: skip
    assert {item.path.split("_")[0]: item.reason for item in found.left_out} == {
        "carphone": "too short: 120 frames, needs 125", "hiker": "too short: 49 frames, needs 125",
    }  # fmt: skip


def test_one_rate_for_all_keeps_the_speed(real_clips: Path) -> None:
    """At 16 fps each clip shows the source frame of that moment; the slow one repeats frames."""
    own = {sample.path: sample for sample in find(real_clips, num_frames=49).samples}
    for sample in find(real_clips, num_frames=25, framerate=16.0).samples:
        assert sample.frames.frame_rate == 16.0
        frames = decode_sample(LocalStorage(real_clips), sample)
        whole = decode_sample(LocalStorage(real_clips), own[sample.path])
        for index in (0, 7, 19, 24):  # not 20: there the middle falls between two frames of 30 fps
            rate = own[sample.path].frames.frame_rate
            shown = int((index / 16 + 0.5 / max(rate, 16)) * rate + 1e-9)
            assert np.array_equal(frames[index], whole[shown]), (sample.path, index, shown)


def test_contact_sheet(real_clips: Path, tmp_path: Path) -> None:
    draw_contact_sheet(find(real_clips).samples, {"real": LocalStorage(real_clips)}, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 50_000
