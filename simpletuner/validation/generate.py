"""Validation videos: every prompt at every size, from the model as it is now.

Reads text features from the prompt cache, so no text encoder is needed; brings the autoencoder in
for the time of decoding and drops it. A video that fails is told and left out; nothing here stops
training. The next stop of the walk is `comparison.py`, then `report.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from simpletuner.caching.prompts import PromptCache
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.sections.validation import ValidationSection
from simpletuner.core.counting import counted
from simpletuner.core.errors import UserError
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted, VideoGenerated
from simpletuner.maths.video_measures import likeness, measure_video
from simpletuner.models.family import Autoencoder, GenerationRequest, GenerationStep, ModelFamily, Source
from simpletuner.runtime.host import release_memory
from simpletuner.runtime.seeds import stream_seed
from simpletuner.validation.first_frame import read_first_frame
from simpletuner.validation.names import Weights, poster_path, video_name
from simpletuner.validation.preview import PreviewedVideo, Previewer
from simpletuner.validation.video_file import Frames, read_video, write_still, write_video

STAGE = "validation"

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
        number: Which of several videos of this prompt and size it is, from 1.
        base: The video of the untouched model that it is compared with, if there is one.
    """

    prompt: ValidationPrompt
    width: int
    height: int
    seed: int
    path: Path
    number: int = 1
    base: Path | None = None


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
        previewer: Shows videos in the making; None shows none.
        stop: Asked after each denoising step; True gives up the video.
    """

    transformer: nn.Module
    family: ModelFamily
    source: Source
    prompts: PromptCache
    settings: ValidationSection
    frame_rate: float
    model: Mapping[str, Any] = field(default_factory=dict)
    previewer: Previewer | None = None
    stop: Callable[[], bool] = lambda: False


class GivenUpError(Exception):
    """Somebody wants to stop, so the video in the making is left."""


def generate_videos(
    studio: Studio,
    wearing: Wearing,
    load_autoencoder: Callable[[], Autoencoder],
    jobs: Sequence[VideoJob],
    *,
    step: int,
    weights: Weights,
    emit: Callable[[Event], None],
) -> list[VideoGenerated]:
    """Generate every video of `jobs` and write the files.

    Modes of the model and random states are left as they were; each video starts from a seed of its own, so neither
    the order nor the number of prompts changes a video.

    Args:
        studio: What makes the videos; its prompt cache must hold every prompt and the negative prompt.
        wearing: Puts the base, trained or averaged weights in for the length of a block.
        load_autoencoder: Called once; what it returns is dropped before this function returns.
        jobs: What is made, usually by `plan_jobs`.
        step: Optimizer steps done so far.
        weights: "base" without the adapter, "adapter" as trained, "ema" their running average.
        emit: Receives progress, a `VideoGenerated` per file, and an error notice per failure.

    Returns:
        The videos that were written.
    """
    if not jobs:
        return []
    started = time.monotonic()
    total = len(jobs) * studio.settings.validation_num_inference_steps
    emit(StageStarted(STAGE, f"Generating videos ({_told(weights, step)})", total, "steps"))
    made: list[VideoGenerated] = []
    try:
        autoencoder = load_autoencoder()
    except (*GENERATION_FAULTS, *WRITING_FAULTS) as error:
        emit(Noticed("error", f"no videos at step {step}: the autoencoder could not be loaded: {reason_of(error)}"))
        jobs = ()
    with wearing(weights):
        for number, job in enumerate(jobs):
            try:
                event = make_video(studio, autoencoder, job, number, step=step, weights=weights, emit=emit)
            except (*GENERATION_FAULTS, *WRITING_FAULTS) as error:
                emit(Noticed("error", f"no video '{job.path.name}': {reason_of(error)}. Training goes on."))
                release_memory()
                continue
            except GivenUpError:
                emit(Noticed("note", f"stopped while generating: {len(made)} of {len(jobs)} videos are made"))
                break
            made.append(event)
            emit(event)
    autoencoder = None  # type: ignore[assignment]  # its memory belongs to training again
    release_memory()
    emit(StageFinished(STAGE, total, time.monotonic() - started, counted(len(made), "video")))
    return made


def plan_jobs(
    prompts: Sequence[ValidationPrompt], settings: ValidationSection, step: int, weights: Weights, folder: Path
) -> list[VideoJob]:
    """Every video of a validation: each prompt at each size, as often as `num_validation_images` says.

    Args:
        step: Optimizer steps done so far, a part of the file names.
        weights: "base" without the adapter, "adapter" as trained, "ema" their running average.
        folder: Where the files go, usually `<run folder>/validation_videos`.
    """

    def job(prompt: ValidationPrompt, width: int, height: int, number: int) -> VideoJob:
        def path_of(done: int, worn: Weights) -> Path:
            return folder / video_name(done, worn, prompt.nickname, width, height, settings.num_frames, number)

        # A random seed depends on the step alone, so that a repeated validation shows the same.
        seed = settings.validation_seed
        if settings.validation_randomize and weights != "base":
            seed = stream_seed(seed, "validation", step)
        base = path_of(0, "base") if weights != "base" else None
        return VideoJob(prompt, width, height, seed + number - 1, path_of(step, weights), number, base)

    return [
        job(prompt, width, height, number)
        for width, height in settings.resolutions
        for prompt in prompts
        for number in range(1, settings.num_validation_images + 1)
    ]


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
        GivenUpError: If the studio's `stop` says so.
    """
    begun = time.monotonic()
    request = make_request(job, studio)
    watch = _watching(studio, job, number, step, weights, emit)
    with _undisturbed(), torch.no_grad():
        frames = studio.family.generate(studio.transformer, studio.source, autoencoder, request, watch)
    shown = _stitched(frames, request.first_frame, studio.settings.validation_stitch_input_location)
    _write(job.path, shown, studio.frame_rate, _recipe(job, studio, step, weights))
    measures = {**measure_video(frames, studio.frame_rate), **_likeness(job)}
    if studio.previewer is not None:
        studio.previewer.wait()
    return VideoGenerated(
        step, weights, job.prompt.nickname, job.prompt.prompt, job.width, job.height, len(frames), studio.frame_rate,
        request.seed, str(job.path), time.monotonic() - begun, job.number, measures,
    )  # fmt: skip


def make_request(job: VideoJob, studio: Studio) -> GenerationRequest:
    """What the family is asked for.

    Raises:
        UserError: If the picture it begins with cannot be read.
    """
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
        guidance_rescale=settings.validation_guidance_rescale,
        draws_on_device=settings.validation_seed_source == "gpu",
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
        **({"guidance_rescale": r} if (r := settings.validation_guidance_rescale) else {}),
        "seed": job.seed,
        "weights": weights,
        "trained_steps": step,
        **studio.model,
    }


def _write(path: Path, frames: Frames, frame_rate: float, recipe: Mapping[str, Any]) -> None:
    if len(frames) > 1:
        write_still(poster_path(path), frames[len(frames) // 2])
    write_video(path, frames, frame_rate, recipe)


def _stitched(frames: Frames, first_frame: torch.Tensor | None, location: str) -> Frames:
    """The video with the picture it began with beside each frame, where that is wanted."""
    if first_frame is None or location == "none":
        return frames
    still = ((first_frame + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    beside = np.broadcast_to(still, frames.shape)
    return np.concatenate([beside, frames] if location == "left" else [frames, beside], axis=2)


def _likeness(job: VideoJob) -> dict[str, float]:
    """How far the video resembles that of the untouched model; both are read as they were written."""
    if job.base is None or not job.base.is_file():
        return {}
    try:
        return {"likeness": likeness(read_video(job.path)[0], read_video(job.base)[0])}
    except (ValueError, OSError):  # the base's file is of another size, or was damaged since
        return {}


def _watching(
    studio: Studio, job: VideoJob, number: int, step: int, weights: Weights, emit: Callable[[Event], None]
) -> Callable[[GenerationStep], None]:
    """What happens after each denoising step of one video."""
    offset = number * studio.settings.validation_num_inference_steps
    detail = f"{job.prompt.nickname} {job.width}x{job.height}"
    video = PreviewedVideo(
        step, weights, job.prompt.nickname, job.prompt.prompt, job.width, job.height, studio.frame_rate, job.path.name,
        job.number,
    )  # fmt: skip

    def after_step(done: GenerationStep) -> None:
        emit(StageAdvanced(STAGE, offset + done.number, detail))
        if studio.previewer is not None:
            studio.previewer.look(video, done)
        if done.number < done.total and studio.stop():
            raise GivenUpError

    return after_step


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
