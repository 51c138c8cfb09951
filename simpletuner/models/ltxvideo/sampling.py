"""Generates a video with the Diffusers pipeline of the release; from a picture with `image_to_video.py`.

The pipeline denoises; decoding is left to `autoencoder.py`, so that its rules stand in one place.
Scheduler and positions follow the release table, not the checkpoint's scheduler file.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline, LTXPipeline
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from torch import Tensor, nn

from simpletuner.models.family import GenerationRequest
from simpletuner.models.ltxvideo.autoencoder import LTXAutoencoder
from simpletuner.models.ltxvideo.image_to_video import denoise_from_frame
from simpletuner.models.ltxvideo.packing import unpack
from simpletuner.models.ltxvideo.positions import SPATIAL, TEMPORAL, token_coordinates
from simpletuner.models.ltxvideo.source import LTXSource
from simpletuner.models.ltxvideo.transformer import base_tensor
from simpletuner.models.ltxvideo.versions import Schedule

# Shift of the 0.9.0/0.9.1 schedule: exp(mu), mu linear in the token count, from their scheduler files.
_SHIFT_TOKENS = (1024, 4096)
_SHIFT_MU = (0.95, 2.05)
_LAST_SIGMA = 0.1
_PIPELINES = {"LTXPipeline": LTXPipeline, "LTXConditionPipeline": LTXConditionPipeline}


def generate(
    transformer: nn.Module,
    source: LTXSource,
    autoencoder: LTXAutoencoder,
    request: GenerationRequest,
    on_step: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Frames uint8 [F, H, W, 3] of one generated video; equal requests give equal frames.

    The transformer's modes and the global random state are left as they were.

    Args:
        on_step: Called with 1, 2, … after each denoising step.
    """
    latents = generate_latents(transformer, source, autoencoder, request, on_step)
    pixels = autoencoder.decode(latents, seed=request.seed)[0]
    frames = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(frames.permute(1, 2, 3, 0).cpu().numpy())


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


def generate_latents(
    transformer: nn.Module,
    source: LTXSource,
    autoencoder: LTXAutoencoder,
    request: GenerationRequest,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Normalised latents [1, C, f, h, w] float32 of one generated video."""
    if request.first_frame is not None:
        with _evaluating(transformer):
            return denoise_from_frame(
                transformer, source, autoencoder, request, noise_levels(source.version.schedule, request), on_step
            )
    pipeline = _PIPELINES[source.version.pipeline](
        scheduler=build_scheduler(source.version.schedule, request.num_inference_steps),
        vae=autoencoder.model,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    with _evaluating(transformer), _forced_positions(transformer, source, request), _known_warning_silenced():
        latents = pipeline(
            **_prompt_arguments(transformer, request),
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            # Rounded as in a batch of clips, so that positions are equal to the last bit.
            frame_rate=float(np.float32(request.frame_rate)),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            callback_on_step_end=_step_callback(on_step),
            output_type="latent",
        ).frames
    # The text pipeline returns tokens, the condition pipeline latents.
    return latents if latents.ndim == 5 else unpack(latents, *_latent_size(request))


def noise_levels(schedule: Schedule, request: GenerationRequest) -> Tensor:
    """The falling noise levels [steps + 1] of a release, float32; the last one is 0."""
    steps = request.num_inference_steps
    if schedule == "linear_quadratic":
        return torch.cat([torch.as_tensor(linear_quadratic_schedule(steps), dtype=torch.float32), torch.zeros(1)])
    scheduler = build_scheduler(schedule, steps)
    frames, height, width = _latent_size(request)
    mu = calculate_shift(frames * height * width, *_SHIFT_TOKENS, *_SHIFT_MU)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    levels: Tensor = scheduler.sigmas
    return levels


def _prompt_arguments(transformer: nn.Module, request: GenerationRequest) -> dict[str, Any]:
    base = base_tensor(transformer)
    arguments = {
        "prompt_embeds": request.prompt_embeds.to(base.device, base.dtype)[None],
        "prompt_attention_mask": request.prompt_mask.to(base.device)[None],
    }
    if request.guidance > 1:
        arguments["negative_prompt_embeds"] = request.negative_embeds.to(base.device, base.dtype)[None]
        arguments["negative_prompt_attention_mask"] = request.negative_mask.to(base.device)[None]
    return arguments


def _latent_size(request: GenerationRequest) -> tuple[int, int, int]:
    return (request.num_frames - 1) // TEMPORAL + 1, request.height // SPATIAL, request.width // SPATIAL


def _step_callback(on_step: Callable[[int], None] | None) -> Callable[..., dict[str, Any]] | None:
    if on_step is None:
        return None

    def after_step(_: Any, index: int, __: Any, ___: dict[str, Any]) -> dict[str, Any]:
        on_step(index + 1)
        return {}

    return after_step


@contextlib.contextmanager
def _evaluating(transformer: nn.Module) -> Iterator[None]:
    training = [module for module in transformer.modules() if module.training]
    transformer.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _forced_positions(transformer: nn.Module, source: LTXSource, request: GenerationRequest) -> Iterator[None]:
    """Where `ltx_positions` departs from the release, give the transformer the positions of training."""
    if source.positions == source.version.positions:
        yield
        return

    def replace_positions(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        tokens = kwargs["hidden_states"]
        rates = torch.full((len(tokens),), request.frame_rate, device=tokens.device)
        return args, {**kwargs, "video_coords": token_coordinates(source.positions, *_latent_size(request), rates)}

    hook = transformer.register_forward_pre_hook(replace_positions, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def _known_warning_silenced() -> Iterator[None]:
    # Diffusers 0.42 warns at every call that its own condition pipeline gives timesteps without
    # sigmas; without a shift both are the same list.
    logger = logging.getLogger("diffusers.schedulers.scheduling_flow_match_euler_discrete")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
