"""Generates a video: noise levels of the release, denoising, decoding.

Scheduler and positions follow the release table, not the checkpoint's scheduler file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from torch import Tensor, nn

from simpletuner.models.family import Autoencoder, GenerationRequest, GenerationStep
from simpletuner.models.ltxvideo.denoising import denoise
from simpletuner.models.ltxvideo.positions import SPATIAL, TEMPORAL
from simpletuner.models.ltxvideo.source import LTXSource
from simpletuner.models.ltxvideo.versions import Schedule
from simpletuner.runtime.modes import evaluating

# Shift of the 0.9.0/0.9.1 schedule: exp(mu), mu linear in the token count, from their scheduler files.
_SHIFT_TOKENS = (1024, 4096)
_SHIFT_MU = (0.95, 2.05)
_LAST_SIGMA = 0.1


def generate(
    transformer: nn.Module,
    source: LTXSource,
    autoencoder: Autoencoder,
    request: GenerationRequest,
    on_step: Callable[[GenerationStep], None] | None = None,
) -> np.ndarray:
    """Frames uint8 [F, H, W, 3] of one generated video; equal requests give equal frames.

    The transformer's modes and the global random state are left as they were.

    Args:
        on_step: Told of each denoising step.
    """
    latents = generate_latents(transformer, source, autoencoder, request, on_step)
    pixels = autoencoder.decode(latents, seed=request.seed)[0]
    frames = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(frames.permute(1, 2, 3, 0).cpu().numpy())


def generate_latents(
    transformer: nn.Module,
    source: LTXSource,
    autoencoder: Autoencoder,
    request: GenerationRequest,
    on_step: Callable[[GenerationStep], None] | None = None,
) -> Tensor:
    """Normalised latents [1, C, f, h, w] float32 of one generated video.

    Args:
        autoencoder: Encodes the picture with which the video begins; without one it is not touched.
    """
    picture = request.first_frame
    first = None if picture is None else autoencoder.encode(picture[None, :, None])
    with evaluating(transformer):
        return denoise(transformer, source, request, levels_of(source, request), first, on_step)


def build_scheduler(schedule: Schedule, num_inference_steps: int) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of a release.

    "shifted": linear levels, shifted by the token count, stretched to end at 0.1. "linear_quadratic":
    the condition pipeline gives the levels, the scheduler must not change them. With one step there
    is nothing to stretch (the formula would divide 0 by 0).
    """
    if schedule == "linear_quadratic":
        return FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_image_seq_len=_SHIFT_TOKENS[0],
        max_image_seq_len=_SHIFT_TOKENS[1],
        base_shift=_SHIFT_MU[0],
        max_shift=_SHIFT_MU[1],
        shift_terminal=_LAST_SIGMA if num_inference_steps > 1 else None,
    )


def levels_of(source: LTXSource, request: GenerationRequest) -> Tensor:
    """The falling noise levels [steps + 1] of a request."""
    frames = (request.num_frames - 1) // TEMPORAL + 1
    tokens = frames * (request.height // SPATIAL) * (request.width // SPATIAL)
    return noise_levels(source.version.schedule, request.num_inference_steps, tokens)


def noise_levels(schedule: Schedule, steps: int, tokens: int) -> Tensor:
    """The falling noise levels [steps + 1] of a release for a clip of so many tokens, float32; the last one is 0."""
    if schedule == "linear_quadratic":
        return torch.cat([torch.as_tensor(linear_quadratic_schedule(steps), dtype=torch.float32), torch.zeros(1)])
    scheduler = build_scheduler(schedule, steps)
    mu = calculate_shift(tokens, *_SHIFT_TOKENS, *_SHIFT_MU)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    levels: Tensor = scheduler.sigmas
    return levels
