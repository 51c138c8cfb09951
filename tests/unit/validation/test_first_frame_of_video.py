"""The picture with which a validation video begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simpletuner.caching.prompts import PromptCache
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.sections.validation import ValidationSection
from simpletuner.core.errors import UserError
from simpletuner.events.types import Event, Noticed
from simpletuner.validation.first_frame import read_first_frame
from simpletuner.validation.generate import Studio, generate_videos, plan_jobs
from simpletuner.validation.video_file import write_video

from .conftest import NoiseFamily


def stripes(width: int, height: int) -> np.ndarray:
    """Red left, green middle, blue right third."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    for third in range(3):
        picture[:, third * width // 3 : (third + 1) * width // 3, third] = 255
    return picture


def test_a_picture_covers_the_size_and_is_cut_around_its_centre(tmp_path: Path) -> None:
    Image.fromarray(stripes(300, 100)).save(tmp_path / "a.png")
    whole = read_first_frame(tmp_path / "a.png", 192, 64)
    assert whole.shape == (3, 64, 192)
    assert whole.dtype == torch.float32
    assert whole[:, 32, 5].tolist() == [1.0, -1.0, -1.0]
    assert whole[:, 32, -5].tolist() == [-1.0, -1.0, 1.0]
    square = read_first_frame(tmp_path / "a.png", 64, 64)
    assert square[:, 32, 32].tolist() == [-1.0, 1.0, -1.0]
    assert (square[1, :, 4:60] > 0.9).all()  # of three thirds only the middle one is left


def test_of_a_clip_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = np.stack([np.full((64, 96, 3), level, dtype=np.uint8) for level in (200, 40, 40, 40)])
    write_video(tmp_path / "a.mp4", frames, 25.0)
    found = read_first_frame(tmp_path / "a.mp4", 96, 64)
    assert ((found + 1) * 127.5).mean().item() == pytest.approx(200, abs=4)


def test_a_damaged_picture_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(UserError, match="the picture cannot be used"):
        read_first_frame(tmp_path / "a.png", 64, 64)


def test_the_request_carries_the_picture_and_a_bad_one_stops_nothing(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    Image.fromarray(stripes(96, 64)).save(tmp_path / "a.png")
    prompts = [
        ValidationPrompt("lost", "a cat", str(tmp_path / "lost.png")),
        ValidationPrompt("cat", "a cat", str(tmp_path / "a.png")),
        ValidationPrompt("dog", "a dog"),
    ]
    studio = Studio(family.model.transformer, family, None, prompt_cache, settings, 25.0)  # type: ignore[arg-type]
    made = generate_videos(
        studio,
        family.model.wearing,
        lambda: None,  # type: ignore[arg-type,return-value]
        plan_jobs(prompts, settings, 1, "adapter", tmp_path / "videos"),
        step=1,
        weights="adapter",
        emit=events.append,
    )
    assert [event.nickname for event in made] == ["cat", "dog"]
    assert next(event.text for event in events if isinstance(event, Noticed)).startswith("no video 'step_1_lost")
    cat, dog = family.requests
    assert cat.first_frame is not None
    assert cat.first_frame.shape == (3, 64, 96)
    assert dog.first_frame is None
