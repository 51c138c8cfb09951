"""Scene changes: found where they are, remembered, and no window spans one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.find import find_samples
from simpletuner.data.index import open_index
from simpletuner.data.sample import LeftOut
from simpletuner.data.storage import LocalStorage, StoredFile
from simpletuner.events.types import Event, StageFinished

Write = Callable[..., Path]
Dataset = Callable[..., ClipDataset]
HERE = importlib.util.find_spec("scenedetect") is not None and importlib.util.find_spec("cv2") is not None
needs_detector = pytest.mark.skipif(not HERE, reason="PySceneDetect (extra `scenes`) is not installed")
CUTS = (20, 50, 53)  # frames at which a picture of another colour begins


@dataclass(frozen=True)
class Raster:
    spatial: int = 32
    temporal: int = 8


def _coloured(number: int) -> np.ndarray:
    """A moving bar on a ground whose colour tells the scene."""
    scene = sum(number >= cut for cut in CUTS)
    picture = np.empty((96, 128, 3), np.uint8)
    picture[:] = [(200, 30, 30), (20, 60, 200), (230, 220, 40), (40, 160, 70)][scene]
    picture[:, number % 100 : number % 100 + 8] = 128
    return picture


@needs_detector
@pytest.mark.parametrize(("ending", "rate"), [("mp4", 25), ("mkv", 30), ("avi", 10)])
def test_changes_are_found_to_the_frame(tmp_path: Path, write_clip: Write, ending: str, rate: int) -> None:
    from simpletuner.data.probe import probe
    from simpletuner.data.scenes import find_cuts

    codec = {"codec": "mpeg4"} if ending == "avi" else {}
    write_clip(tmp_path / f"a.{ending}", frames=80, rate=rate, paint=_coloured, **codec)
    storage = LocalStorage(tmp_path)
    cuts = find_cuts(storage, f"a.{ending}", probe(storage, f"a.{ending}"))
    assert [round(cut * rate) for cut in cuts] == list(CUTS)


@needs_detector
def test_no_window_spans_a_change(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    from simpletuner.data.decode import decode_sample

    write_clip(tmp_path / "a.mp4", frames=80, paint=_coloured)
    rules = {"num_frames": 9, "frame_sampling": "split", "split_at_scenes": True}
    dataset = clip_dataset(tmp_path, video=rules, cache_dir_vae=str(tmp_path / "cache"))
    storage = LocalStorage(tmp_path)
    events: list[Event] = []
    found = find_samples([dataset], {"test": storage}, Raster(), workers=2, emit=events.append)
    assert [(sample.name, round(sample.frames.start_seconds * 25)) for sample in found.samples] == [
        ("test/a.mp4", 0), ("test/a.mp4#2", 9), ("test/a.mp4#3", 20), ("test/a.mp4#4", 29), ("test/a.mp4#5", 38),
        ("test/a.mp4#6", 53), ("test/a.mp4#7", 62), ("test/a.mp4#8", 71),
    ]  # fmt: skip
    assert found.left_out == (LeftOut("test", "a.mp4", "too short: 3 frames, needs 9", part="2.00 to 2.12 s"),)
    for sample in found.samples:
        colours = np.median(decode_sample(storage, sample), axis=(1, 2))
        assert np.abs(colours - colours[0]).max() < 30
    finished = [event for event in events if isinstance(event, StageFinished) and event.stage == "scenes"]
    assert [event.summary for event in finished] == ["3 in 1 clips"]


def test_what_was_found_is_remembered(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    """Cuts put into the index by hand are used without the detector, and not for another content."""
    from simpletuner.data.scenes import DETECTOR

    write_clip(tmp_path / "a.mp4", frames=33)
    rules = {"num_frames": 9, "frame_sampling": "first", "split_at_scenes": True}
    dataset = clip_dataset(tmp_path, video=rules, cache_dir_vae=str(tmp_path / "cache"))
    file = LocalStorage(tmp_path).stat("a.mp4")
    with open_index(dataset) as index:
        index.write_facts(DETECTOR, [(file, [0.4])])
    found = find_samples([dataset], {"test": LocalStorage(tmp_path)}, Raster(), workers=1, emit=lambda event: None)
    assert [(sample.part, sample.frames.start_seconds) for sample in found.samples] == [(0, 0.0), (1, 0.4)]
    with open_index(dataset) as index:
        assert index.read_facts(DETECTOR, {"a.mp4": StoredFile("a.mp4", 1, "x")}) == {}


def test_a_missing_package_names_the_extra(
    tmp_path: Path, write_clip: Write, clip_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simpletuner.data.scenes.PACKAGE", "a_package_that_is_nowhere")
    write_clip(tmp_path / "a.mp4", frames=9)
    dataset = clip_dataset(tmp_path, video={"num_frames": 9, "split_at_scenes": True})
    with pytest.raises(UserError, match=r"PySceneDetect is not installed.*extra `scenes`"):
        find_samples([dataset], {"test": LocalStorage(tmp_path)}, Raster(), workers=1, emit=lambda event: None)
