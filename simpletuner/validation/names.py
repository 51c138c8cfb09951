"""Where validation puts its files, and how they are called; torch-free, so that a report starts at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

VIDEO_FOLDER = "validation_videos"  # inside the run folder
PREVIEW_FOLDER = "validation_previews"  # likewise

Weights = Literal["base", "adapter", "ema"]


def video_name(
    step: int, weights: Weights, nickname: str, width: int, height: int, num_frames: int, number: int = 1
) -> str:
    """File name of one video: "step_500_cat_768x512.mp4", or "base_cat_768x512.mp4" without the adapter.

    The second video of a prompt is "step_500_cat+2_768x512.mp4"; no nickname holds a "+".

    Raises:
        ValueError: If the nickname is not a plain part of a file name.
    """
    suffix = "png" if num_frames == 1 else "mp4"
    origin = {"base": "base", "adapter": f"step_{step}", "ema": f"step_{step}_ema"}[weights]
    which = f"+{number}" if number > 1 else ""
    name = f"{origin}_{nickname}{which}_{width}x{height}.{suffix}"
    if Path(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(f"nickname {nickname!r} is not safe in a file name")
    return name


def poster_path(video: Path) -> Path:
    """Where the still picture of `video` lies; a one-frame validation is its own poster."""
    return video.with_suffix(".png")
