"""Flags and near-duplicates: each found where it was painted, and nothing found in clips nobody painted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from simpletuner.config.catalogs.families import Grid
from simpletuner.config.dataset import ClipDataset
from simpletuner.data.decode import decode_frames
from simpletuner.data.find import find_samples
from simpletuner.data.looks import enlargement
from simpletuner.data.quality import (
    Look,
    find_flags,
    find_near_duplicates,
    hash_thumbs,
    look_at,
    look_indices,
    look_of_record,
)
from simpletuner.data.sample import Sample
from simpletuner.data.storage import LocalStorage

COUNT = 33
WIDTH, HEIGHT = 192, 128
Dataset = Callable[..., ClipDataset]
Write = Callable[..., Path]


def natural(seed: int, width: int = WIDTH + 96, height: int = HEIGHT) -> np.ndarray:
    """A picture uint8 [H, W, 3] with as much structure at every scale as nature has: amplitude 1 / frequency."""
    generator = np.random.default_rng(seed)
    across, down = np.meshgrid(np.fft.fftfreq(width) * width, np.fft.fftfreq(height) * height)
    distance = np.maximum(np.hypot(across, down), 1)
    layers = [np.fft.ifft2(np.fft.fft2(generator.standard_normal((height, width))) / distance).real for _ in range(3)]
    picture = np.stack(layers, axis=-1)
    return np.clip(128 + 48 * (picture - picture.mean()) / picture.std(), 0, 255).astype(np.uint8)


def pan(seed: int, first: int = 0, count: int = COUNT) -> np.ndarray:
    """Frames [F, H, W, 3] of a camera that turns by two columns per frame."""
    picture = natural(seed)
    return np.stack([picture[:, 2 * k : 2 * k + WIDTH] for k in range(first, first + count)])


def look(frames: np.ndarray, enlarged: float = 1.0) -> Look:
    return look_at(frames[list(look_indices(len(frames)))], len(frames), enlarged)


def kinds(frames: np.ndarray, enlarged: float = 1.0) -> list[str]:
    return [flag.kind for flag in find_flags(look(frames, enlarged))]


def softened(frames: np.ndarray, radius: float) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(radius))) for frame in frames])


def flickering(frames: np.ndarray) -> np.ndarray:
    signs = np.where(np.arange(len(frames)) % 2, 20, -20)[:, None, None, None]
    return np.clip(frames.astype(int) + signs, 0, 255).astype(np.uint8)


def grain(frames: np.ndarray, strength: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, strength, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def in_focus_only_in_a_corner(frames: np.ndarray) -> np.ndarray:
    mixed = softened(frames, 6)
    mixed[:, : HEIGHT // 2, : WIDTH // 2] = frames[:, : HEIGHT // 2, : WIDTH // 2]
    return mixed


def faded(frames: np.ndarray) -> np.ndarray:
    dark = frames.copy()
    dark[:6] = 0
    return dark


def cut_once(frames: np.ndarray) -> np.ndarray:
    return np.concatenate([frames[: COUNT // 2], pan(99)[COUNT // 2 :]])


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda frames: frames, []),
        (lambda frames: frames // 12, ["black"]),
        (lambda frames: np.zeros_like(frames) + 16, ["black"]),
        (faded, ["partly black"]),
        (lambda frames: np.repeat(frames[:1], COUNT, 0), ["static"]),
        (lambda frames: grain(np.repeat(frames[:1], COUNT, 0), 6), ["static"]),
        (lambda frames: np.full_like(frames, 90), ["low contrast", "static"]),
        (lambda frames: (100 + frames // 16).astype(np.uint8), ["low contrast"]),
        (lambda frames: softened(frames, 4), ["blurred"]),
        (flickering, ["flicker"]),
        (cut_once, []),
        (in_focus_only_in_a_corner, []),
        (lambda frames: grain(frames, 10), []),
        (lambda frames: (frames * np.linspace(0.3, 1, COUNT)[:, None, None, None]).astype(np.uint8), []),
        (lambda frames: frames // 3, []),
    ],
    ids=["sound", "dark", "video black", "fade-in", "still", "still with grain", "one colour", "flat", "soft",
         "flicker", "one cut", "one thing in focus", "grainy", "brightening", "night"],
)  # fmt: skip
def test_each_fault_is_found_and_nothing_else(spoil: Callable[[np.ndarray], np.ndarray], expected: list[str]) -> None:
    assert kinds(spoil(pan(1))) == expected


def test_an_enlarged_clip_is_not_called_blurred_for_it() -> None:
    frames = np.stack([np.asarray(Image.fromarray(f).resize((WIDTH * 4, HEIGHT * 4))) for f in pan(1, count=9)])
    assert kinds(frames, enlarged=4.0) == []


def test_pictures_are_neither_static_nor_flickering() -> None:
    assert kinds(pan(1, count=1)) == []
    assert look_indices(1) == (0,)


@pytest.mark.parametrize("count", [1, 9, 17, 33, 121])
def test_a_look_takes_few_frames_and_both_ends(count: int) -> None:
    indices = look_indices(count)
    assert indices[0] == 0
    assert indices[-1] == count - 1
    assert list(indices) == sorted(set(indices))
    assert len(indices) <= 20


def test_a_look_survives_json() -> None:
    seen = look(pan(3))
    back = look_of_record(json.loads(json.dumps(seen.as_record())))
    assert back is not None
    assert np.array_equal(back.thumbs, seen.thumbs)
    assert find_flags(back) == find_flags(seen)
    assert look_of_record(seen.as_record() | {"recipe": 0}) is None


def test_hash_counts_edges_between_neighbours() -> None:
    falling = np.repeat(np.arange(90, 0, -10, dtype=np.uint8)[None, None, :, None], 8, 1).repeat(3, 3)
    assert int(hash_thumbs(falling)[0]) == 2**64 - 1
    assert int(hash_thumbs(falling[:, :, ::-1])[0]) == 0


def decoded(write: Write, folder: Path, frames: np.ndarray, name: str, *, crf: int, size: tuple[int, int]) -> Look:
    """What is seen of a clip after it was encoded at another size and rate."""

    def paint(number: int) -> np.ndarray:
        return np.asarray(Image.fromarray(frames[number]).resize(size))

    options = {"crf": str(crf), "preset": "ultrafast", "threads": "1"}
    write(folder / name, len(frames), paint=paint, width=size[0], height=size[1], options=options)
    return look_of_file(folder, name)


def look_of_file(folder: Path, name: str) -> Look:
    dataset = ClipDataset(id="set", instance_data_dir=str(folder), caption_strategy="filename", resolution=96,
                          resolution_type="pixel", video={"num_frames": COUNT})  # fmt: skip
    sample = next(sample for sample in find(dataset, folder) if sample.path == name)
    return look_of_sample(sample, folder)


def find(dataset: ClipDataset, folder: Path) -> tuple[Sample, ...]:
    storages = {dataset.id: LocalStorage(folder)}
    return find_samples([dataset], storages, Grid(32, 8, 128), workers=1, emit=lambda event: None).samples


def look_of_sample(sample: Sample, folder: Path) -> Look:
    count = sample.frames.num_frames
    frames = decode_frames(LocalStorage(folder), sample, look_indices(count))
    return look_at(frames, count, enlargement(sample))


def test_copies_are_found_whatever_was_done_to_them(write_clip: Write, tmp_path: Path) -> None:
    """Encoded at a tenth of the rate, shrunk, begun later: still the same clip. Other clips are not."""
    original = decoded(write_clip, tmp_path, pan(1), "original.mp4", crf=15, size=(192, 128))
    others = [look(pan(seed)) for seed in range(2, 8)]
    copies = {
        "low rate": decoded(write_clip, tmp_path, pan(1), "low.mp4", crf=40, size=(192, 128)),
        "small": decoded(write_clip, tmp_path, pan(1), "small.mp4", crf=28, size=(96, 64)),
        "shifted": decoded(write_clip, tmp_path, pan(1, first=9), "shifted.mp4", crf=20, size=(192, 128)),
    }
    looks = [*others, original, *copies.values()]
    assert find_near_duplicates(looks, [str(place) for place in range(len(looks))]) == ((6, 7, 8, 9),)


def test_windows_of_one_file_are_no_duplicates_and_black_clips_match_no_fade() -> None:
    assert find_near_duplicates([look(pan(1)), look(pan(1, first=4))], ["a.mp4", "a.mp4"]) == ()
    black, fade = look(np.zeros((COUNT, HEIGHT, WIDTH, 3), np.uint8)), look(faded(pan(1)))
    assert find_near_duplicates([black, fade], ["a.mp4", "b.mp4"]) == ()
    assert find_near_duplicates([], []) == ()


def test_thousands_of_clips_take_seconds() -> None:
    """Twice as many clips take about twice as long, not four times; every copy is found."""

    def elapsed(count: int) -> float:
        thumbs = np.random.default_rng(0).integers(0, 255, (count, 1, 8, 9, 3), dtype=np.uint8)
        looks = [Look(np.repeat(thumb, 13, 0), (200.0,), (200.0,), 20.0, 1.0, 0) for thumb in thumbs]
        looks += looks[: count // 20]
        begun = time.perf_counter()
        groups = find_near_duplicates(looks, [str(place) for place in range(len(looks))])
        assert groups == tuple((place, count + place) for place in range(count // 20))
        return time.perf_counter() - begun

    elapsed(200)
    assert elapsed(4000) < 3.2 * elapsed(2000) + 0.5


def test_no_false_alarm_on_real_clips(real_clips: Path, tmp_path: Path) -> None:
    dataset = ClipDataset(id="real", instance_data_dir=str(real_clips), caption_strategy="textfile", resolution=256,
                          resolution_type="pixel_area", video={"num_frames": 25})  # fmt: skip
    samples = find(dataset, real_clips)
    assert len(samples) == 6
    looks = [look_of_sample(sample, real_clips) for sample in samples]
    assert [find_flags(seen) for seen in looks] == [()] * 6
    assert find_near_duplicates(looks, [sample.path for sample in samples]) == ()
