"""Which samples may be given their first frame, from the data set to the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from simpletuner.config.dataset import ClipDataset
from simpletuner.data.batch_rules import BatchRules
from simpletuner.data.batches import BatchStream
from simpletuner.data.find import find_samples
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample
from simpletuner.data.storage import open_storage


def samples(count: int) -> list[Sample]:
    info = MediaInfo("video", 64, 64, 25.0, 9, 0.4, 0, 1.0, "h264", 1, "1")
    crop = CropPlan(64, 64, 0, 0, 64, 64)
    return [
        Sample("d", f"{number}.mp4", info, FramePlan(9, 25.0, 0.0), crop, ("a",), 1, is_i2v=number % 3 == 0)
        for number in range(count)
    ]


def drawn(chosen: list[Sample]) -> dict[str, bool]:
    stream = BatchStream(
        chosen, lambda sample: torch.zeros(4, 2, 2, 2), lambda text: (torch.zeros(2, 3), torch.ones(2)),
        BatchRules(batch_size=4), seed=1, caption_dropout=0.0, prefetch=0,
    )  # fmt: skip
    found = {}
    for _ in range(stream.batches_per_epoch):
        batch = next(stream)
        found.update(zip(batch.sample_names, batch.is_i2v, strict=True))
    return found


def test_each_draw_of_a_mixed_batch_keeps_its_own_mark_and_the_order_does_not_depend_on_it() -> None:
    marked = samples(12)
    found = drawn(marked)
    assert found == {sample.name: sample.is_i2v for sample in marked}
    plain = drawn([replace(sample, is_i2v=False) for sample in marked])
    assert list(plain) == list(found)
    assert not any(plain.values())


@dataclass(frozen=True)
class Raster:
    spatial: int = 32
    temporal: int = 8


def test_samples_take_the_mark_of_their_set_and_pictures_take_none(
    clip_dataset: Callable[..., ClipDataset], write_clip: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("marked", "plain", "pictures"):
        (tmp_path / name).mkdir()
    write_clip(tmp_path / "marked" / "a.mp4", frames=9)
    write_clip(tmp_path / "plain" / "a.mp4", frames=9)
    Image.new("RGB", (128, 96)).save(tmp_path / "pictures" / "a.png")
    video = {"num_frames": 9, "min_frames": 9}
    sets = [
        clip_dataset(tmp_path / "marked", {**video, "is_i2v": True}, id="marked"),
        clip_dataset(tmp_path / "plain", video, id="plain"),
        clip_dataset(tmp_path / "pictures", {"is_i2v": True}, id="pictures", dataset_type="image"),
    ]
    storages = {entry.id: open_storage(entry) for entry in sets}
    found = find_samples(sets, storages, Raster(), workers=1, emit=lambda event: None)
    assert {sample.dataset: sample.is_i2v for sample in found.samples} == {
        "marked": True, "plain": False, "pictures": False
    }  # fmt: skip
