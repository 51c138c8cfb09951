"""Latents are encoded once, match their clip, and follow every setting that shapes them."""

from __future__ import annotations

import errno
import gc
import importlib.util
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simpletuner.caching.entry import FORMAT
from simpletuner.caching.fingerprint import encoder_identity
from simpletuner.caching.latents import LatentCache, LatentSettings, cache_latents
from simpletuner.core.errors import UserError
from simpletuner.core.files import STAGING
from simpletuner.data.sample import CropPlan, FramePlan, Sample
from simpletuner.data.storage import LocalStorage
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted

from .conftest import FRAMES, SIZE, Counted, PoolingAutoencoder, plan_sample, write_clip

IDENTITY = encoder_identity("pooling", dtype="float32")


def build(
    clips: Path,
    samples: list[Sample],
    events: list[Event],
    load: Callable[[], Any] = PoolingAutoencoder,
    identity: str = IDENTITY,
    batch_size: int = 2,
    folder: Path | None = None,
    **settings: Any,
) -> LatentCache:
    return cache_latents(
        samples,
        {"set": LocalStorage(clips)},
        {"set": folder or clips.parent / "cache"},
        LatentSettings(identity=identity, batch_size=batch_size, workers=2, **settings),
        load,
        emit=events.append,
    )


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_everything_is_encoded_once_and_the_encoder_stays_away_afterwards(
    clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    load = Counted(PoolingAutoencoder)
    first = build(clips, samples, events, load)
    again = build(clips, samples, events, load)
    assert (first.encoded, first.reused, load.calls) == (3, 0, 1)
    assert (again.encoded, again.reused) == (0, 3)
    for sample in samples:
        assert torch.equal(first.read(sample), again.read(sample))
    assert again.read(samples[0]).shape == (8, 2, 2, 2)


def test_the_autoencoder_is_dropped_before_the_cache_is_handed_back(
    clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    alive: list[weakref.ref[PoolingAutoencoder]] = []

    def load() -> PoolingAutoencoder:
        autoencoder = PoolingAutoencoder()
        alive.append(weakref.ref(autoencoder))
        return autoencoder

    build(clips, samples, events, load)
    gc.collect()
    assert [reference() for reference in alive] == [None]


def test_trap_1_pixels_arrive_as_they_were_decoded(clips: Path, samples: list[Sample], events: list[Event]) -> None:
    """The autoencoder makes numbers in [-1, 1] of them, see `test_ltx_autoencoder.py`; nobody has scaled them."""
    spy = PoolingAutoencoder()
    build(clips, samples, events, lambda: spy)
    pixels = torch.cat(spy.seen)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 3, FRAMES, SIZE, SIZE)
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_trap_2_latents_are_normalised_exactly_once(clips: Path, samples: list[Sample], events: list[Event]) -> None:
    cache = build(clips, samples, events)
    autoencoder = PoolingAutoencoder()
    grey = torch.full((1, 3, FRAMES, SIZE, SIZE), 128 / 127.5 - 1)
    with torch.no_grad():
        raw = autoencoder.encode(grey)[0] * autoencoder.deviation + autoencoder.mean
    stored = cache.read(samples[2])
    assert stored.dtype == torch.float32
    torch.testing.assert_close(stored * 2.0 + 3.0, raw, atol=0.03, rtol=0)


def test_trap_7_two_files_of_one_stem_keep_their_own_latents(
    clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    cache = build(clips, samples, events)
    dark, bright = cache.read(samples[0]), cache.read(samples[1])
    # Channel 7 has positive weights only: a brighter clip gives larger values.
    assert bright[7].mean() > dark[7].mean() + 1
    names = [path.relative_to(clips.parent / "cache").as_posix() for path in entries(clips.parent / "cache")]
    assert len(names) == 3
    assert sum(name.startswith("dark-") for name in names) == 2
    assert sum(name.startswith("deep/grey-") for name in names) == 1


def _other_frames(sample: Sample) -> Sample:
    return replace(sample, frames=FramePlan(1, 25.0, 0.0))


SHAPING: dict[str, Callable[[Sample], Sample]] = {
    "number of frames": _other_frames,
    "start": lambda s: replace(s, frames=replace(s.frames, num_frames=1, start_seconds=0.04)),
    "frame rate": lambda s: replace(s, frames=replace(s.frames, frame_rate=50.0)),
    "resolution": lambda s: replace(s, crop=CropPlan(32, 32, 0, 0, 32, 32)),
    "scale": lambda s: replace(s, crop=CropPlan(96, 96, 0, 0, 64, 64)),
    "crop corner": lambda s: replace(s, crop=CropPlan(96, 96, 7, 5, 64, 64)),
}


@pytest.mark.parametrize("key", SHAPING)
def test_trap_8_every_geometry_key_encodes_everything_again(
    key: str, clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    build(clips, samples, events)
    changed = build(clips, [SHAPING[key](sample) for sample in samples], events)
    assert (changed.encoded, changed.reused, changed.stale) == (3, 0, 3)
    assert any("3 entries" in event.text for event in events if isinstance(event, Noticed))


def test_trap_9_a_changed_setting_is_what_is_read(clips: Path, samples: list[Sample], events: list[Event]) -> None:
    build(clips, samples, events)
    smaller = [SHAPING["resolution"](sample) for sample in samples]
    assert build(clips, smaller, events).read(smaller[0]).shape == (8, 2, 1, 1)


@pytest.mark.parametrize("change", [lambda s: replace(s, repeats=9), lambda s: replace(s, captions=("other", "words"))])
def test_trap_8_repeats_captions_and_batch_size_encode_nothing(
    change: Callable[[Sample], Sample], clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    build(clips, samples, events)
    changed = build(clips, [change(sample) for sample in samples], events, batch_size=1)
    assert (changed.encoded, changed.reused, changed.stale) == (0, 3, 0)


@pytest.mark.parametrize(
    "identity",
    [
        encoder_identity("another autoencoder", dtype="float32"),
        encoder_identity("pooling", dtype="bfloat16"),
        encoder_identity("pooling", dtype="float32", tiling=True),
    ],
)
def test_trap_6_and_11_another_autoencoder_dtype_or_tiling_makes_entries_stale(
    identity: str, clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    before = build(clips, samples, events)
    changed = build(clips, samples, events, identity=identity)
    assert (changed.encoded, changed.stale) == (3, 3)
    # Stale entries are told, not deleted: going back to the old settings costs nothing.
    back = build(clips, samples, events)
    assert (back.encoded, back.reused) == (0, 3)
    assert torch.equal(back.read(samples[0]), before.read(samples[0]))


def test_replacing_one_clip_encodes_that_clip_only(clips: Path, samples: list[Sample], events: list[Event]) -> None:
    old = build(clips, samples, events).read(samples[0])
    write_clip(clips / "dark.mp4", 200)
    renewed = [plan_sample(clips, sample.path) for sample in samples]
    cache = build(clips, renewed, events)
    assert (cache.encoded, cache.reused, cache.stale) == (1, 2, 1)
    assert not torch.equal(cache.read(renewed[0]), old)


def test_a_clip_that_cannot_be_decoded_is_left_out_and_the_rest_goes_on(
    clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    (clips / "dark.mkv").unlink()
    cache = build(clips, samples, events)
    assert [(item.dataset, item.path) for item in cache.left_out] == [("set", "dark.mkv")]
    assert cache.left_out[0].reason
    assert [cache.holds(sample) for sample in samples] == [True, False, True]
    assert cache.encoded == 2
    assert any("dark.mkv" in event.text for event in events if isinstance(event, Noticed))


class NanAutoencoder(PoolingAutoencoder):
    """Breaks on bright clips, as an autoencoder in too small a number format does."""

    def encode(self, pixels: Tensor) -> Tensor:
        latents = super().encode(pixels)
        return torch.where(pixels.float().mean(dim=(1, 2, 3, 4)).reshape(-1, 1, 1, 1, 1) > 191, torch.nan, latents)


def test_latents_that_are_not_numbers_are_never_written(
    clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    cache = build(clips, samples, events, NanAutoencoder)
    assert [item.path for item in cache.left_out] == ["dark.mkv"]
    assert "vae_dtype" in cache.left_out[0].reason
    assert len(entries(clips.parent / "cache")) == 2


class CrampedAutoencoder(PoolingAutoencoder):
    """Has room for one clip at a time."""

    def encode(self, pixels: Tensor) -> Tensor:
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("room for one clip only")
        return super().encode(pixels)


def test_a_batch_that_does_not_fit_is_halved(clips: Path, samples: list[Sample], events: list[Event]) -> None:
    cache = build(clips, samples, events, CrampedAutoencoder, batch_size=3)
    assert (cache.encoded, cache.left_out) == (3, ())
    whole = build(clips, samples, events, folder=clips.parent / "other", batch_size=3)
    torch.testing.assert_close(cache.read(samples[1]), whole.read(samples[1]))


def test_progress_is_told_in_order(clips: Path, samples: list[Sample], events: list[Event]) -> None:
    build(clips, samples, events, batch_size=1)
    stage = [event for event in events if isinstance(event, (StageStarted, StageAdvanced, StageFinished))]
    assert isinstance(stage[0], StageStarted)
    assert (stage[0].stage, stage[0].total, stage[0].done) == ("latents", 3, 0)
    assert [event.done for event in stage[1:-1]] == [1, 2, 3]
    assert isinstance(stage[-1], StageFinished)
    assert stage[-1].summary == "3 encoded, 0 reused"


def test_a_full_disk_keeps_what_is_complete_and_a_rerun_does_the_rest(
    clips: Path, samples: list[Sample], events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes, writes = Path.write_bytes, []

    def full_after_two(path: Path, data: bytes) -> int:
        if FORMAT.encode() not in data:
            return write_bytes(path, data)  # a claim
        writes.append(path)
        if len(writes) > 2:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full_after_two)
    with pytest.raises(UserError, match="no space left") as caught:
        build(clips, samples, events, batch_size=1)
    assert caught.value.exit_code == 6
    monkeypatch.undo()
    folder = clips.parent / "cache"
    assert len(entries(folder)) == 2
    assert all(path.suffix == ".safetensors" for path in entries(folder))
    rerun = build(clips, samples, events, batch_size=1)
    assert (rerun.encoded, rerun.reused) == (1, 2)


KILLED = """
import os, sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
import simpletuner.core.files as files
from conftest import PoolingAutoencoder, plan_sample
from simpletuner.caching.latents import LatentSettings, cache_latents
from simpletuner.data.storage import LocalStorage
replace, commits, lock = os.replace, [], threading.Lock()
def die_before_second_commit(source, target):
    with lock:
        if commits:
            os._exit(9)
        replace(source, target)
        commits.append(target)
files.os.replace = die_before_second_commit
root = Path({root!r})
samples = [plan_sample(root, name) for name in ("dark.mp4", "dark.mkv", "deep/grey.mp4")]
storages, folders = {{"set": LocalStorage(root)}}, {{"set": root.parent / "cache"}}
settings = LatentSettings(identity={identity!r}, workers=1)
cache_latents(samples, storages, folders, settings, PoolingAutoencoder, emit=lambda event: None)
"""


def test_trap_3_and_10_a_killed_build_leaves_nothing_readable_half_done_and_equals_the_undisturbed_one(
    clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), root=str(clips), identity=IDENTITY)
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    folder = clips.parent / "cache"
    litter = [path for path in entries(folder) if path.name.startswith(STAGING)]
    assert litter
    for path in litter:
        an_hour_ago = path.stat().st_mtime - 3700
        os.utime(path, (an_hour_ago, an_hour_ago))
    after = build(clips, samples, events, batch_size=1)
    assert (after.encoded, after.reused) == (2, 1)
    undisturbed = clips.parent / "undisturbed"
    build(clips, samples, events, batch_size=1, folder=undisturbed)
    # One entry was made by another process: the posterior mean is not a draw, so files are equal.
    assert {p.relative_to(folder): p.read_bytes() for p in entries(folder)} == {
        p.relative_to(undisturbed): p.read_bytes() for p in entries(undisturbed)
    }


def test_young_staging_files_of_a_live_run_are_left_alone(
    clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    folder = clips.parent / "cache"
    folder.mkdir()
    (folder / f"{STAGING}of-another-run").write_bytes(b"half")
    build(clips, samples, events)
    assert (folder / f"{STAGING}of-another-run").exists()


def test_an_entry_lost_while_training_is_told_and_made_again(
    clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    cache = build(clips, samples, events)
    before = cache.read(samples[0])
    for path in entries(clips.parent / "cache"):
        path.unlink()
    events.clear()
    assert torch.equal(cache.read(samples[0]), before)
    assert any("it is gone; it is made again" in event.text for event in events if isinstance(event, Noticed))
    assert len(entries(clips.parent / "cache")) == 1
    (clips / samples[1].path).unlink()
    with pytest.raises(UserError, match=r"dark\.mkv cannot be encoded"):
        cache.read(samples[1])


def test_latents_may_stay_in_memory(clips: Path, samples: list[Sample], events: list[Event]) -> None:
    cache = build(clips, samples, events)
    cache.stay_in_memory()
    before = [cache.read(sample) for sample in samples]
    assert entries(clips.parent / "cache")
    for path in entries(clips.parent / "cache"):  # what was read is there, whatever happens to its file
        path.write_bytes(b"")
        path.unlink()
    assert all(torch.equal(cache.read(sample), one) for sample, one in zip(samples, before, strict=True))
    before[0].zero_()  # and nobody else's
    assert cache.read(samples[0]).any()


def test_an_empty_file_is_no_entry(clips: Path, samples: list[Sample], events: list[Event]) -> None:
    cache = build(clips, samples[:1], events)
    before = cache.read(samples[0])
    (path,) = entries(clips.parent / "cache")
    path.write_bytes(b"")
    assert torch.equal(cache.read(samples[0]), before)
    assert any("it is made again" in event.text for event in events if isinstance(event, Noticed))


def test_a_flipped_bit_is_found_by_the_first_read_and_mended(
    clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    cache = build(clips, samples[:1], events)
    before = cache.read(samples[0])
    (path,) = entries(clips.parent / "cache")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = build(clips, samples[:1], events)
    assert (again.encoded, again.reused) == (0, 1)
    assert torch.equal(again.read(samples[0]), before)
    assert any("checksum" in event.text for event in events if isinstance(event, Noticed))
    # With scan_for_errors it is found before training.
    path.write_bytes(content)
    scanned = build(clips, samples[:1], events, scanned=frozenset({"set"}))
    assert (scanned.encoded, scanned.reused) == (1, 0)
    assert torch.equal(scanned.read(samples[0]), before)


def test_several_samples_of_one_clip_have_their_own_latents(
    clips: Path, samples: list[Sample], events: list[Event]
) -> None:
    first = replace(samples[0], frames=FramePlan(1, 25.0, 0.0))
    later = replace(samples[0], frames=FramePlan(1, 25.0, 0.2))
    cache = build(clips, [first, later, first], events)
    assert cache.encoded == 2
    assert cache.holds(first)
    assert cache.holds(later)


@pytest.mark.skipif(
    importlib.util.find_spec("simpletuner.models.ltxvideo.family") is None
    or importlib.util.find_spec("simpletuner.models.ltxvideo.miniature") is None,
    reason="the LTX-Video family is not in this checkout",
)
def test_trap_3_the_real_autoencoder_gives_the_same_latents_twice(
    clips: Path, samples: list[Sample], events: list[Event], miniature: Path
) -> None:
    from simpletuner.config.sections.model import ModelSection
    from simpletuner.models.ltxvideo.family import FAMILY

    source = FAMILY.resolve(ModelSection(model_family="ltxvideo", pretrained_model_name_or_path=str(miniature)))
    identity = encoder_identity(source.identity("autoencoder"), dtype="float32")

    def load() -> Any:
        return FAMILY.load_autoencoder(source, torch.float32, torch.device("cpu"))

    one = build(clips, samples, events, load, identity, batch_size=1)
    two = build(clips, samples, events, load, identity, batch_size=1, folder=clips.parent / "second")
    for sample in samples:
        assert one.read(sample).shape == FAMILY.grid.latent_shape(SIZE, SIZE, FRAMES)
        assert torch.equal(one.read(sample), two.read(sample))
