"""Validation videos: every prompt at every size, from the model as it is now.

Reads text features from the prompt cache, so no text encoder is needed; brings the autoencoder in
for the time of decoding and drops it. A video that fails is told and left out; nothing here stops
training. The next stop of the walk is `comparison.py`, then `report.py`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from simpletuner.caching.prompts import PromptCache
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.sections.validation import ValidationSection
from simpletuner.core.errors import UserError
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted, VideoGenerated
from simpletuner.models.family import Autoencoder, GenerationRequest, ModelFamily, Source
from simpletuner.validation.first_frame import read_first_frame
from simpletuner.validation.video_file import Frames, write_still, write_video

STAGE = "validation"
VIDEO_FOLDER = "validation_videos"  # inside the run folder

Weights = Literal["base", "adapter", "ema"]
# What generating one video may raise when it fails: no memory (a RuntimeError in torch) or a shape
# the model refuses. Anything else is a fault of ours and keeps its traceback.
_GENERATION_FAULTS = (RuntimeError, ValueError)
_WRITING_FAULTS = (UserError, OSError)


# Puts the named weights into the model while it is open.
Wearing = Callable[[Weights], AbstractContextManager[None]]


@dataclass(frozen=True)
class _Job:
    prompt: ValidationPrompt
    width: int
    height: int


def video_name(step: int, weights: Weights, nickname: str, width: int, height: int, num_frames: int) -> str:
    """File name of one video: "step_500_cat_768x512.mp4", or "base_cat_768x512.mp4" without the adapter.

    Raises:
        ValueError: If the nickname is not a plain part of a file name.
    """
    suffix = "png" if num_frames == 1 else "mp4"
    origin = {"base": "base", "adapter": f"step_{step}", "ema": f"step_{step}_ema"}[weights]
    name = f"{origin}_{nickname}_{width}x{height}.{suffix}"
    if Path(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(f"nickname {nickname!r} is not safe in a file name")
    return name


def poster_path(video: Path) -> Path:
    """Where the still picture of `video` lies; a one-frame validation is its own poster."""
    return video.with_suffix(".png")


def generate_videos(
    transformer: nn.Module,
    wearing: Wearing,
    family: ModelFamily,
    source: Source,
    load_autoencoder: Callable[[], Autoencoder],
    prompt_cache: PromptCache,
    prompts: Sequence[ValidationPrompt],
    settings: ValidationSection,
    *,
    step: int,
    weights: Weights,
    frame_rate: float,
    folder: Path,
    emit: Callable[[Event], None],
) -> list[VideoGenerated]:
    """Generate every prompt at every size of `settings` and write the files.

    Modes of the model and random states are left as they were; each video starts from
    `validation_seed`, so neither the order nor the number of prompts changes a video.

    Args:
        transformer: The model as it is trained.
        wearing: Puts the base, trained or averaged weights in for the length of a block.
        load_autoencoder: Called once; what it returns is dropped before this function returns.
        prompt_cache: Must hold every prompt and the negative prompt.
        step: Optimizer steps done so far, a part of the file names.
        weights: "base" without the adapter, "adapter" as trained, "ema" their running average.
        frame_rate: Frames per second of the videos and of the positions the model is given.
        folder: Where the files go, usually `<run folder>/validation_videos`.
        emit: Receives progress, a `VideoGenerated` per file, and an error notice per failure.

    Returns:
        The videos that were written.
    """
    jobs = [_Job(prompt, width, height) for width, height in settings.resolutions for prompt in prompts]
    if not jobs:
        return []
    started = time.monotonic()
    total = len(jobs) * settings.validation_num_inference_steps
    emit(StageStarted(STAGE, f"Generating videos ({_told(weights, step)})", total, "steps"))
    made: list[VideoGenerated] = []
    try:
        autoencoder = load_autoencoder()
    except (*_GENERATION_FAULTS, *_WRITING_FAULTS) as error:
        emit(Noticed("error", f"no videos at step {step}: the autoencoder could not be loaded: {_reason(error)}"))
        jobs = []
    with _undisturbed(), torch.no_grad(), wearing(weights):
        for number, job in enumerate(jobs):
            on_step = _progress(number * settings.validation_num_inference_steps, job, emit)
            begun = time.monotonic()
            path = folder / video_name(step, weights, job.prompt.nickname, job.width, job.height, settings.num_frames)
            try:
                request = _request(job, prompt_cache, settings, frame_rate)
                frames = family.generate(transformer, source, autoencoder, request, on_step)
                _write(path, frames, frame_rate)
            except (*_GENERATION_FAULTS, *_WRITING_FAULTS) as error:
                emit(Noticed("error", f"no video '{path.name}': {_reason(error)}. Training goes on."))
                _release_memory()
                continue
            event = VideoGenerated(
                step, weights, job.prompt.nickname, job.prompt.prompt, job.width, job.height, len(frames), frame_rate,
                request.seed, str(path), time.monotonic() - begun,
            )  # fmt: skip
            made.append(event)
            emit(event)
    autoencoder = None  # type: ignore[assignment]  # its memory belongs to training again
    _release_memory()
    emit(StageFinished(STAGE, total, time.monotonic() - started, f"{len(made)} videos"))
    return made


def _request(job: _Job, prompt_cache: PromptCache, settings: ValidationSection, frame_rate: float) -> GenerationRequest:
    embeds, mask = prompt_cache.read(job.prompt.prompt)
    negative_embeds, negative_mask = prompt_cache.read(settings.validation_negative_prompt)
    image = job.prompt.image
    return GenerationRequest(
        prompt_embeds=embeds,
        prompt_mask=mask,
        negative_embeds=negative_embeds,
        negative_mask=negative_mask,
        width=job.width,
        height=job.height,
        num_frames=settings.num_frames,
        frame_rate=frame_rate,
        guidance=settings.validation_guidance,
        num_inference_steps=settings.validation_num_inference_steps,
        seed=settings.validation_seed,
        first_frame=read_first_frame(Path(image), job.width, job.height) if image else None,
    )


def _write(path: Path, frames: Frames, frame_rate: float) -> None:
    if len(frames) > 1:
        write_still(poster_path(path), frames[len(frames) // 2])
    write_video(path, frames, frame_rate)


def _progress(offset: int, job: _Job, emit: Callable[[Event], None]) -> Callable[[int], None]:
    detail = f"{job.prompt.nickname} {job.width}x{job.height}"
    return lambda done: emit(StageAdvanced(STAGE, offset + done, detail))


def _undisturbed() -> AbstractContextManager[None]:
    """Give the global random states back as they were, of the CPU and of every CUDA device in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return torch.random.fork_rng(devices=devices)


def _told(weights: Weights, step: int) -> str:
    return {"base": "base model", "adapter": f"step {step}", "ema": f"step {step}, averaged weights"}[weights]


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _release_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was never used
