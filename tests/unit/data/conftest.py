"""Clips made on the spot, with the number of each frame painted into its picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from simpletuner.config.dataset import ClipDataset, VideoRules
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample

BITS = 8
Painter = Callable[[int], np.ndarray]


def _bars(number: int, width: int, height: int) -> np.ndarray:
    """The number in binary: a white or black upright bar per bit, the highest on the left."""
    bits = [(number >> (BITS - 1 - place)) & 1 for place in range(BITS)]
    return np.repeat(np.repeat(np.array(bits, np.uint8) * 255, width // BITS)[None, :, None], height, 0).repeat(3, 2)


def _leave_real_time() -> None:
    """SVT-AV1 gives a process of root's real-time priority for good; whatever else runs would starve."""
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """write(path, frames=…, rate=…, codec=…, stamps_ms=…): a clip whose frames show their numbers."""

    def write(
        path: Path,
        frames: int = 33,
        rate: Fraction | int = 25,
        codec: str = "libx264",
        pixel_format: str = "yuv420p",
        width: int = 128,
        height: int = 96,
        stamps_ms: Sequence[int] | None = None,
        paint: Painter | None = None,
        rotation: int = 0,
        mirrored: bool = False,
        options: dict[str, str] | None = None,
        prepare: Callable[[Any], None] | None = None,
        container_options: dict[str, str] | None = None,
    ) -> Path:
        defaults = {
            "libx264": {"crf": "12", "bf": "2", "g": "12", "preset": "ultrafast", "threads": "1"},
            "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime", "crf": "10", "b": "0"},
            "mpeg4": {"qscale": "2", "g": "12"},
        }
        with av.open(str(path), "w", options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=1000 if stamps_ms else rate)
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            stream.options = options if options is not None else defaults.get(codec, {})
            if rotation or mirrored:
                stream.set_display_rotation(rotation, hflip=mirrored)
            if prepare:
                prepare(stream)
            for number in range(len(stamps_ms) if stamps_ms else frames):
                picture = paint(number) if paint else _bars(number, width, height)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if stamps_ms:
                    frame.pts, frame.time_base = stamps_ms[number], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        if codec == "libsvtav1":
            _leave_real_time()
        return path

    return write


@pytest.fixture(scope="session")
def read_numbers() -> Callable[[np.ndarray], list[int]]:
    """Frames uint8 [F, H, W, 3] -> the numbers painted into them."""

    def read(frames: np.ndarray) -> list[int]:
        bar = frames.shape[2] // BITS
        middles = frames[:, frames.shape[1] // 2, bar // 2 :: bar, :].mean(axis=-1) > 127
        return [int("".join("1" if bit else "0" for bit in row), 2) for row in middles]

    return read


@pytest.fixture(scope="session")
def clip_dataset() -> Callable[..., ClipDataset]:
    """dataset(folder, video={...}, **settings): an entry whose captions are the file names."""

    def build(folder: Path | str = "", video: dict[str, Any] | None = None, **settings: Any) -> ClipDataset:
        merged = {"id": "test", "caption_strategy": "filename", "resolution": 96, "resolution_type": "pixel"} | settings
        return ClipDataset(instance_data_dir=str(folder), video=VideoRules(**(video or {})), **merged)

    return build


@pytest.fixture(scope="session")
def planned() -> Callable[..., Sample]:
    """sample(name, …): a sample of a file that is never opened."""

    def build(
        path: str,
        width: int = 64,
        height: int = 64,
        frames: int = 9,
        captions: Sequence[str] = ("a",),
        repeats: int = 1,
        frame_rate: float = 25.0,
        dataset: str = "test",
    ) -> Sample:
        info = MediaInfo("video", width, height, frame_rate, frames, frames / frame_rate, 0, 1.0, "h264", 1, "1")
        return Sample(
            dataset,
            path,
            info,
            FramePlan(frames, frame_rate, 0.0),
            CropPlan(width, height, 0, 0, width, height),
            tuple(captions),
            repeats,
        )

    return build
