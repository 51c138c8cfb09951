"""Validation videos: every prompt at every size, from the model as it is now.

Reads text features from the prompt cache, so no text encoder is needed; brings the autoencoder in
for the time of decoding and drops it. A video that fails is told and left out; nothing here stops
training. The next stop of the walk is `comparison.py`, then `report.py`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from simpletuner.caching.prompts import PromptCache
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.sections.validation import ValidationSection
from simpletuner.core.errors import UserError
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted, VideoGenerated
from simpletuner.models.family import Autoencoder, GenerationRequest, GenerationStep, ModelFamily, Source
from simpletuner.validation.first_frame import read_first_frame
from simpletuner.validation.video_file import Frames, write_still, write_video

STAGE = "validation"
VIDEO_FOLDER = "validation_videos"  # inside the run folder

Weights = Literal["base", "adapter", "ema"]
# What generating one video may raise when it fails: no memory (a RuntimeError in torch) or a shape
# the model refuses. Anything else is a fault of ours and keeps its traceback.
GENERATION_FAULTS = (RuntimeError, ValueError)
WRITING_FAULTS = (UserError, OSError)


# Puts the named weights into the model while it is open.
Wearing = Callable[[Weights], AbstractContextManager[None]]


@dataclass(frozen=True)
class VideoJob:
    """One video to make: what it shows, how large, from which noise, and where it goes.

    Attributes:
        prompt: Its text, its nickname in messages, and the picture it begins with, if any.
        width, height: Pixels, multiples of the family's raster.
        seed: Seed of the starting noise.
        path: The file, ".mp4", or ".png" for one frame.
    """

    prompt: ValidationPrompt
    width: int
    height: int
    seed: int
    path: Path


@dataclass(frozen=True)
class Studio:
    """What makes videos: the model as it is, and everything around it.

    Attributes:
        transformer: The model with whatever it wears.
        family, source: How to sample it.
        prompts: Features of every prompt and of the negative prompt.
        settings: Frames, steps, guidance and negative prompt.
        frame_rate: Frames per second of the videos and of the positions the model is given.
        model: Texts about the model that are written into each file, such as its release.
    """

    transformer: nn.Module
    family: ModelFamily
    source: Source
    prompts: PromptCache
    settings: ValidationSection
    frame_rate: float
    model: Mapping[str, Any] = field(default_factory=dict)


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
    jobs = [
        VideoJob(
            prompt, width, height, settings.validation_seed,
            folder / video_name(step, weights, prompt.nickname, width, height, settings.num_frames),
        )
        for width, height in settings.resolutions
        for prompt in prompts
    ]  # fmt: skip
    if not jobs:
        return []
    started = time.monotonic()
    total = len(jobs) * settings.validation_num_inference_steps
    emit(StageStarted(STAGE, f"Generating videos ({_told(weights, step)})", total, "steps"))
    made: list[VideoGenerated] = []
    try:
        autoencoder = load_autoencoder()
    except (*GENERATION_FAULTS, *WRITING_FAULTS) as error:
        emit(Noticed("error", f"no videos at step {step}: the autoencoder could not be loaded: {reason_of(error)}"))
        jobs = []
    studio = Studio(transformer, family, source, prompt_cache, settings, frame_rate)
    with wearing(weights):
        for number, job in enumerate(jobs):
            try:
                event = make_video(studio, autoencoder, job, number, step=step, weights=weights, emit=emit)
            except (*GENERATION_FAULTS, *WRITING_FAULTS) as error:
                emit(Noticed("error", f"no video '{job.path.name}': {reason_of(error)}. Training goes on."))
                _release_memory()
                continue
            made.append(event)
            emit(event)
    autoencoder = None  # type: ignore[assignment]  # its memory belongs to training again
    _release_memory()
    emit(StageFinished(STAGE, total, time.monotonic() - started, f"{len(made)} videos"))
    return made


def make_video(
    studio: Studio,
    autoencoder: Autoencoder,
    job: VideoJob,
    number: int,
    *,
    step: int,
    weights: Weights,
    emit: Callable[[Event], None],
) -> VideoGenerated:
    """Generate one video and write its file, with how it was made inside; random states stay as they were.

    Args:
        number: How many videos of the stage came before, for the progress.
        step: Optimizer steps that the weights were trained for.

    Raises:
        RuntimeError, ValueError: If the model cannot make it: no memory, or a shape it refuses.
        UserError, OSError: If its picture cannot be read, or the file cannot be written.
    """
    begun, settings = time.monotonic(), studio.settings
    on_step = _progress(number * settings.validation_num_inference_steps, job, emit)
    request = _request(job, studio)
    with _undisturbed(), torch.no_grad():
        frames = studio.family.generate(studio.transformer, studio.source, autoencoder, request, on_step)
    _write(job.path, frames, studio.frame_rate, _recipe(job, studio, step, weights))
    return VideoGenerated(
        step, weights, job.prompt.nickname, job.prompt.prompt, job.width, job.height, len(frames), studio.frame_rate,
        request.seed, str(job.path), time.monotonic() - begun,
    )  # fmt: skip


def _request(job: VideoJob, studio: Studio) -> GenerationRequest:
    settings = studio.settings
    embeds, mask = studio.prompts.read(job.prompt.prompt)
    negative_embeds, negative_mask = studio.prompts.read(settings.validation_negative_prompt)
    image = job.prompt.image
    return GenerationRequest(
        prompt_embeds=embeds,
        prompt_mask=mask,
        negative_embeds=negative_embeds,
        negative_mask=negative_mask,
        width=job.width,
        height=job.height,
        num_frames=settings.num_frames,
        frame_rate=studio.frame_rate,
        guidance=settings.validation_guidance,
        num_inference_steps=settings.validation_num_inference_steps,
        seed=job.seed,
        first_frame=read_first_frame(Path(image), job.width, job.height) if image else None,
    )


def _recipe(job: VideoJob, studio: Studio, step: int, weights: Weights) -> dict[str, Any]:
    """How the video was made, as it is written into its file."""
    settings = studio.settings
    return {
        "prompt": job.prompt.prompt,
        "negative_prompt": settings.validation_negative_prompt,
        **({"image": Path(job.prompt.image).name} if job.prompt.image else {}),
        "width": job.width,
        "height": job.height,
        "num_frames": settings.num_frames,
        "frame_rate": studio.frame_rate,
        "steps": settings.validation_num_inference_steps,
        "guidance": settings.validation_guidance,
        "seed": job.seed,
        "weights": weights,
        "trained_steps": step,
        **studio.model,
    }


def _write(path: Path, frames: Frames, frame_rate: float, recipe: Mapping[str, Any]) -> None:
    if len(frames) > 1:
        write_still(poster_path(path), frames[len(frames) // 2])
    write_video(path, frames, frame_rate, recipe)


def _progress(offset: int, job: VideoJob, emit: Callable[[Event], None]) -> Callable[[GenerationStep], None]:
    detail = f"{job.prompt.nickname} {job.width}x{job.height}"
    return lambda step: emit(StageAdvanced(STAGE, offset + step.number, detail))


def _undisturbed() -> AbstractContextManager[None]:
    """Give the global random states back as they were, of the CPU and of every CUDA device in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return torch.random.fork_rng(devices=devices)


def _told(weights: Weights, step: int) -> str:
    return {"base": "base model", "adapter": f"step {step}", "ema": f"step {step}, averaged weights"}[weights]


def reason_of(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _release_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was never used
