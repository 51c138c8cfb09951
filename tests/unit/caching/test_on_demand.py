"""What is encoded when it is first read equals what is encoded ahead, is kept if asked for, and tells its faults."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from simpletuner.caching.latents import LatentCache, LatentSettings, cache_latents
from simpletuner.caching.prompts import PromptCache, PromptSettings, cache_prompts
from simpletuner.caching.store import Storing, entry_files
from simpletuner.core.errors import UserError
from simpletuner.data.sample import FramePlan, Sample
from simpletuner.data.storage import LocalStorage
from simpletuner.events.types import Event, Noticed

from .conftest import Counted, HashingPromptEncoder, PoolingAutoencoder

SET = frozenset({"set"})
WORDS = 8


def build(
    clips: Path, samples: list[Sample], events: list[Event], folder: Path, load: Any = PoolingAutoencoder, **more: Any
) -> LatentCache:
    settings = LatentSettings("pooling", workers=2, **more)
    return cache_latents(samples, {"set": LocalStorage(clips)}, {"set": folder}, settings, load, emit=events.append)


def build_texts(texts: list[str], folder: Path, events: list[Event], load: Any = None, **more: Any) -> PromptCache:
    settings = PromptSettings(folder, "hashing", WORDS, **more)
    return cache_prompts(texts, settings, load or (lambda: HashingPromptEncoder(WORDS)), emit=events.append)


def test_a_clip_is_encoded_when_first_read_and_kept(
    clips: Path, samples: list[Sample], events: list[Event], tmp_path: Path
) -> None:
    ahead = build(clips, samples, events, tmp_path / "ahead")
    load = Counted(PoolingAutoencoder)
    cache = build(clips, samples, events, tmp_path / "later", load, on_demand=SET)
    assert (load.calls, cache.encoded, cache.on_demand) == (0, 0, 3)
    assert all(cache.holds(sample) for sample in samples)
    events.clear()
    for _ in range(2):
        for sample in samples:
            assert torch.equal(cache.read(sample), ahead.read(sample))
    assert load.calls == 1
    assert not [event for event in events if isinstance(event, Noticed)]
    # What was kept equals what is made ahead, byte for byte.
    kept = [path.read_bytes() for path in entry_files(tmp_path / "later")]
    assert kept == [path.read_bytes() for path in entry_files(tmp_path / "ahead")]
    again = build(clips, samples, events, tmp_path / "later", load, on_demand=SET)
    assert (again.reused, again.on_demand) == (3, 0)


def test_nothing_is_kept_when_the_cache_is_disabled_and_what_is_there_is_used(
    clips: Path, samples: list[Sample], events: list[Event], tmp_path: Path
) -> None:
    build(clips, samples[:1], events, tmp_path / "cache")
    load = Counted(PoolingAutoencoder)
    cache = build(clips, samples, events, tmp_path / "cache", load, on_demand=SET, unwritten=SET)
    first = cache.read(samples[0])
    assert load.calls == 0
    for _ in range(2):
        assert torch.isfinite(cache.read(samples[1])).all()
    assert first.shape == cache.read(samples[2]).shape
    assert len(list(entry_files(tmp_path / "cache"))) == 1


def test_a_damaged_clip_is_left_out_at_the_start_and_told_by_name_later(
    clips: Path, samples: list[Sample], events: list[Event], tmp_path: Path
) -> None:
    (clips / "dark.mkv").unlink()
    cache = build(clips, samples, events, tmp_path / "cache", on_demand=SET)
    assert [item.path for item in cache.left_out] == ["dark.mkv"]
    assert [cache.holds(sample) for sample in samples] == [True, False, True]
    (clips / "dark.mp4").unlink()
    with pytest.raises(UserError, match=r"set/dark\.mp4 cannot be encoded on demand") as caught:
        cache.read(samples[0])
    assert "vae_cache_ondemand" in str(caught.value)


def test_only_the_named_data_sets_wait(clips: Path, samples: list[Sample], events: list[Event], tmp_path: Path) -> None:
    other = [replace(samples[0], dataset="other")]
    settings = LatentSettings("pooling", workers=2, on_demand=frozenset({"other"}))
    storages, folders = dict.fromkeys(("set", "other"), LocalStorage(clips)), {"set": tmp_path, "other": tmp_path}
    cache = cache_latents([*samples, *other], storages, folders, settings, PoolingAutoencoder, emit=events.append)
    assert (cache.encoded, cache.on_demand) == (3, 1)
    assert torch.equal(cache.read(other[0]), cache.read(samples[0]))


def test_threads_that_read_at_once_load_one_autoencoder(
    clips: Path, samples: list[Sample], events: list[Event], tmp_path: Path
) -> None:
    load = Counted(PoolingAutoencoder)
    cache = build(clips, samples, events, tmp_path / "cache", load, on_demand=SET)
    read: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda s=sample: read.append(cache.read(s))) for sample in samples * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (load.calls, len(read)) == (1, 9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_latents_are_kept_in_the_asked_format_and_read_as_float32(
    dtype: torch.dtype, clips: Path, samples: list[Sample], events: list[Event], tmp_path: Path
) -> None:
    exact = PoolingAutoencoder().encode(torch.full((1, 3, 1, 64, 64), 128 / 127.5 - 1))[0].detach()
    sample = replace(samples[2], frames=FramePlan(1, 25.0, 0.0))
    read = build(clips, [sample], events, tmp_path, dtype=dtype).read(sample)
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, exact, atol=0.03, rtol=0)
    assert torch.equal(read.to(dtype).float(), read)
    # Another format is another entry.
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    assert build(clips, [sample], events, tmp_path, dtype=other).encoded == 1


@pytest.mark.parametrize("form", ["files", "shards"])
@pytest.mark.parametrize("compress", [False, True])
def test_every_form_gives_the_same_latents_and_changing_it_encodes_nothing(
    form: Any, compress: bool, clips: Path, samples: list[Sample], events: list[Event], tmp_path: Path
) -> None:
    plain = build(clips, samples, events, tmp_path / "plain")
    cache = build(clips, samples, events, tmp_path / "cache", storing=Storing(form, compress))
    changed = build(clips, samples, events, tmp_path / "cache")
    assert (changed.encoded, changed.reused, changed.stale) == (0, 3, 0)
    for sample in samples:
        assert torch.equal(cache.read(sample), plain.read(sample))
        assert torch.equal(changed.read(sample), plain.read(sample))


def test_a_caption_is_encoded_when_first_read_and_kept(events: list[Event], tmp_path: Path) -> None:
    load = Counted(lambda: HashingPromptEncoder(WORDS))
    texts = ["a red fox", "one two three four five six seven eight nine"]
    ahead = build_texts(texts, tmp_path / "ahead", events)
    events.clear()
    cache = build_texts(texts, tmp_path / "later", events, load, on_demand=True)
    assert (load.calls, cache.on_demand) == (0, 3)
    for text in ["", *texts]:
        for mine, other in zip(cache.read(text), ahead.read(text), strict=True):
            assert torch.equal(mine, other)
    assert load.calls == 1
    assert ["'eight nine'" in event.text for event in events if isinstance(event, Noticed)] == [True]
    assert build_texts(texts, tmp_path / "later", events).reused == 3
    with pytest.raises(KeyError):
        cache.read("never asked for")


def test_captions_leave_no_trace_when_their_cache_is_disabled(events: list[Event], tmp_path: Path) -> None:
    cache = build_texts(["a red fox"], tmp_path / "cache", events, on_demand=True, unwritten=True)
    assert torch.equal(cache.read("a red fox")[0], cache.read("a red fox")[0])
    assert not (tmp_path / "cache").exists()


def test_captions_stay_in_memory_if_asked_for(events: list[Event], tmp_path: Path) -> None:
    cache = build_texts(["a red fox"], tmp_path, events, in_memory=True)
    first = cache.read("a red fox")
    for path in entry_files(tmp_path):
        path.unlink()
    assert cache.read("a red fox")[0] is first[0]


def test_places_of_another_epoch_are_encoded_when_read_and_not_kept(
    clips: Path, samples: list[Sample], events: list[Event], tmp_path: Path
) -> None:
    folder = tmp_path / "redrawn"
    samples = [replace(sample, frames=replace(sample.frames, num_frames=1)) for sample in samples]
    cache = build(clips, samples, events, folder, on_demand=SET, unwritten=SET, redrawn=SET)
    plain = build(clips, samples, events, tmp_path / "plain")
    moved = replace(samples[2], frames=replace(samples[2].frames, start_seconds=0.08))
    for sample in samples:
        assert torch.equal(cache.read(sample), plain.read(sample))
    other = build(clips, [moved], events, tmp_path / "moved").read(moved)
    assert torch.equal(cache.read(moved), other)
    assert not list(entry_files(folder))
    with pytest.raises(KeyError):
        plain.read(moved)
