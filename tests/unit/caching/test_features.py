"""The teacher's features: made once, renewed when the teacher or the latents change, never read when stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simpletuner.caching.features import FeatureSettings, cache_features
from simpletuner.caching.store import Storing
from simpletuner.core.errors import UserError
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample

INFO = MediaInfo("video", 64, 64, 25.0, 9, 0.4, 0, 1.0, "h264", 1, "1")
SAMPLES = tuple(
    Sample("d", f"{n}.mp4", INFO, FramePlan(9, 25.0, 0.0), CropPlan(64, 64, 0, 0, 64, 64), (f"c{n}",), 1)
    for n in range(3)
)


class Bench:
    """A cache folder and a teacher that counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loads = 0
        self.calls = 0
        self.value = 1.0

    def fill(self, identity: str = "a", pooled: bool = False, latents: str = "x", **storing: Any) -> Any:
        def load() -> Any:
            self.loads += 1

            def make(batch: Tensor) -> Tensor:
                self.calls += 1
                return self.value * batch.permute(0, 2, 3, 4, 1)

            return make

        return cache_features(
            SAMPLES, lambda sample: torch.full((4, 2, 2, 2), float(sample.path[0])),
            lambda sample: {"name": sample.path, "latents": latents}, {"d": self.folder},
            FeatureSettings(identity, Storing(**storing), pooled), load, emit=lambda event: None,
        )  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_made_once_and_read_again(bench: Bench) -> None:
    first = bench.fill()
    assert (first.made, first.reused, bench.loads, bench.calls) == (3, 0, 1, 3)
    second = bench.fill()
    assert (second.made, second.reused, bench.loads) == (0, 3, 1)
    for sample in SAMPLES:
        expected = torch.full((2, 2, 2, 4), float(sample.path[0]))
        assert torch.equal(first.read(sample), expected)
        assert torch.equal(second.read(sample), expected)


@pytest.mark.parametrize("change", [{"identity": "b"}, {"latents": "y"}, {"pooled": True}])
def test_whatever_shapes_them_makes_them_anew(bench: Bench, change: dict[str, Any]) -> None:
    bench.fill()
    bench.value = 2.0
    renewed = bench.fill(**change)
    assert (renewed.made, bench.loads) == (3, 2)
    shape = (2, 1, 1, 4) if change.get("pooled") else (2, 2, 2, 4)
    assert torch.equal(renewed.read(SAMPLES[2]), torch.full(shape, 4.0))
    assert bench.fill().made == 0  # the old ones are still there for the old settings


def test_packed_and_compressed(bench: Bench) -> None:
    packed = bench.fill(form="shards", compress=True)
    assert torch.equal(packed.read(SAMPLES[1]), torch.full((2, 2, 2, 4), 1.0))


def test_a_damaged_entry_is_told_not_used(bench: Bench) -> None:
    bench.fill()
    damaged = max(bench.folder.rglob("*.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    cache = bench.fill()
    told = 0
    for sample in SAMPLES:
        try:
            cache.read(sample)
        except UserError:
            told += 1
    assert told == 1


def test_features_that_are_no_numbers_are_refused(bench: Bench) -> None:
    bench.value = float("nan")
    with pytest.raises(UserError, match="not finite"):
        bench.fill()
