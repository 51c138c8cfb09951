"""Which decoder paints previews, and which clips lend their first frames."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample
from simpletuner.recipes.first_frames import choose_clips
from simpletuner.recipes.previews import choose_decoder


@pytest.mark.parametrize(
    ("written", "chosen"),
    [
        ("auto", ("linear", None)),
        ("linear", ("linear", None)),
        ("autoencoder", ("autoencoder", None)),
        ("models/tae.safetensors", ("file", Path("models/tae.safetensors"))),
    ],
)
def test_what_is_written_is_taken(written: str, chosen: Any, tmp_path: Path) -> None:
    assert choose_decoder(written, str(tmp_path)) == chosen


def test_a_checkpoint_may_bring_its_own(tmp_path: Path) -> None:
    own = tmp_path / "preview_decoder.safetensors"
    own.write_bytes(b"")
    assert choose_decoder("auto", str(tmp_path)) == ("file", own)
    assert choose_decoder("linear", str(tmp_path)) == ("linear", None)
    assert choose_decoder("auto", "Lightricks/LTX-Video-0.9.5") == ("linear", None)
    assert choose_decoder("auto", None) == ("linear", None)


def sample(dataset: str, number: int, caption: str = "a clip", *, is_i2v: bool = False) -> Sample:
    info = MediaInfo("video", 64, 64, 25.0, 9, 0.36, 0, 1.0, "h264", 1, "")
    frames, crop = FramePlan(9, 25.0, 0.0), CropPlan(64, 64, 0, 0, 64, 64)
    return Sample(dataset, f"{number}.mp4", info, frames, crop, (caption,), 1, is_i2v=is_i2v)


def chosen(samples: list[Sample], evaluation: dict[str, tuple[Sample, ...]], only: str | None = None) -> list[str]:
    plan: Any = SimpleNamespace(samples=tuple(samples), evaluation=evaluation)
    return [one.name for one in choose_clips(plan, only)]


def test_held_out_clips_come_before_trained_ones() -> None:
    trained = [sample("set", number, is_i2v=number % 2 == 1) for number in range(20)]
    held_out = {"a": tuple(sample("a", n) for n in range(3)), "b": (sample("b", 0), sample("b", 1, " "))}
    assert chosen(trained, held_out) == ["a/0.mp4", "a/1.mp4", "a/2.mp4", "b/0.mp4"]
    assert chosen(trained, held_out, "b") == ["b/0.mp4"]
    assert chosen(trained, {}) == ["set/1.mp4", "set/5.mp4", "set/9.mp4", "set/13.mp4"]
    assert chosen(trained[::2], {})[:2] == ["set/0.mp4", "set/4.mp4"]


def test_a_clip_in_several_excerpts_is_shown_once() -> None:
    parts = [sample("set", 0), sample("set", 0), sample("set", 1)]
    assert chosen(parts, {}) == ["set/0.mp4", "set/1.mp4"]
