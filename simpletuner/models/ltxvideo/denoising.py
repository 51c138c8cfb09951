"""From noise to the latents of a video: Euler steps along the predicted velocity, with or without a given picture.

The call of the model is that of training (`transformer.predict`). With a picture the first latent frame stays as it
is, at level 0, and no noise is added to it, as in training. tests/parity shows that both ways compute what the
pipelines of Diffusers compute for each release.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from simpletuner.maths.guidance import guide
from simpletuner.models.family import GenerationRequest, GenerationStep
from simpletuner.models.ltxvideo.positions import SPATIAL, TEMPORAL
from simpletuner.models.ltxvideo.source import LTXSource
from simpletuner.models.ltxvideo.transformer import base_tensor, input_widths, predict


@torch.no_grad()
def denoise(
    transformer: nn.Module,
    source: LTXSource,
    request: GenerationRequest,
    levels: Tensor,
    first_latent: Tensor | None = None,
    on_step: Callable[[GenerationStep], None] | None = None,
) -> Tensor:
    """Normalised latents [1, C, f, h, w] float32 of one video.

    Args:
        transformer: In evaluation mode.
        request: What is wanted; its `first_frame` is not looked at.
        levels: [steps + 1] falling noise levels, the last one 0.
        first_latent: [1, C, 1, h, w] the encoded picture with which the video begins; None for text alone.
        on_step: Told of each step.

    Raises:
        ValueError: If a picture is given and the video has one latent frame in all.
    """
    given = 0 if first_latent is None else 1
    if first_latent is not None and request.num_frames <= TEMPORAL:
        raise ValueError(f"a clip that begins with a picture needs {TEMPORAL + 1} frames or more")
    # Drawn whole, so that the rest of the clip starts from the noise that it would have without a picture.
    latents = draw_noise(transformer, request)
    if first_latent is not None:
        latents[:, :, :1] = first_latent.to(latents)
    rows = levels.tolist()
    for number, (now, after) in enumerate(itertools.pairwise(rows), start=1):
        velocity = _guided_velocity(transformer, source, request, latents, now, clean_first=bool(given))
        if given:
            velocity[:, :, :1] = 0  # what is given stays
        if on_step is not None:
            on_step(GenerationStep(number, len(rows) - 1, after, latents - now * velocity))
        latents = latents + (after - now) * velocity
    return latents


def draw_noise(transformer: nn.Module, request: GenerationRequest) -> Tensor:
    """Noise [1, C, f, h, w] float32 on the model's device, the same for equal seeds on every device."""
    device = base_tensor(transformer).device
    frames = (request.num_frames - 1) // TEMPORAL + 1
    shape = (1, input_widths(transformer)[0], frames, request.height // SPATIAL, request.width // SPATIAL)
    if request.draws_on_device:
        return torch.randn(shape, generator=torch.Generator(device).manual_seed(request.seed), device=device)
    return torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)).to(device)


def _guided_velocity(
    transformer: nn.Module,
    source: LTXSource,
    request: GenerationRequest,
    latents: Tensor,
    level: float,
    *,
    clean_first: bool,
) -> Tensor:
    """Velocity [1, C, f, h, w] with classifier-free guidance, both prompts in one call."""
    embeds, masks = [request.prompt_embeds], [request.prompt_mask]
    if request.guidance > 1:
        embeds, masks = [request.negative_embeds, *embeds], [request.negative_mask, *masks]
    count, device = len(embeds), latents.device
    velocity = predict(
        transformer,
        source,
        latents.expand(count, -1, -1, -1, -1),
        torch.full((count,), level, device=device),
        torch.stack(embeds).to(device),
        torch.stack(masks),
        torch.full((count,), request.frame_rate),
        first_frame_sigmas=torch.zeros(count, device=device) if clean_first else None,
    )
    if count == 1:
        return velocity
    without, given = velocity.split(1)
    return guide(without, given, request.guidance, request.guidance_rescale)
