"""Generates latents of a clip that begins with a given picture: the first latent frame stays as it is.

The call of the model is that of training (`transformer.predict`), with level 0 for the first latent frame; it is what
Diffusers' image-to-video pipelines compute, see tests/parity. No noise is added to the picture, as in training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from simpletuner.models.family import GenerationRequest
from simpletuner.models.ltxvideo.autoencoder import LTXAutoencoder
from simpletuner.models.ltxvideo.positions import SPATIAL, TEMPORAL
from simpletuner.models.ltxvideo.source import LTXSource
from simpletuner.models.ltxvideo.transformer import base_tensor, input_widths, predict


@torch.no_grad()
def denoise_from_frame(
    transformer: nn.Module,
    source: LTXSource,
    autoencoder: LTXAutoencoder,
    request: GenerationRequest,
    levels: Tensor,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Normalised latents [1, C, f, h, w] float32 of a clip whose first frame is `request.first_frame`.

    Args:
        transformer: In evaluation mode.
        levels: [steps + 1] falling noise levels, the last one 0.
        on_step: Called with 1, 2, … after each denoising step.

    Raises:
        ValueError: If the request has no first frame, or one latent frame in all.
    """
    picture, frames = request.first_frame, (request.num_frames - 1) // TEMPORAL + 1
    if picture is None or frames < 2:
        raise ValueError(f"a clip that begins with a picture needs it and {TEMPORAL + 1} frames or more")
    device = base_tensor(transformer).device
    shape = (1, input_widths(transformer)[0], frames, request.height // SPATIAL, request.width // SPATIAL)
    # Drawn whole, so that the rest of the clip starts from the noise that it would have without a picture.
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)).to(device)
    latents[:, :, :1] = autoencoder.encode(picture[None, :, None]).to(device)
    for number, (now, after) in enumerate(zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True), start=1):
        velocity = _guided_velocity(transformer, source, request, latents, now)
        latents[:, :, 1:] += (after - now) * velocity[:, :, 1:]
        if on_step is not None:
            on_step(number)
    return latents


def _guided_velocity(
    transformer: nn.Module, source: LTXSource, request: GenerationRequest, latents: Tensor, level: float
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
        torch.stack(masks).to(device),
        torch.full((count,), request.frame_rate, device=device),
        first_frame_sigmas=torch.zeros(count, device=device),
    )
    if count == 1:
        return velocity
    without, given = velocity.split(1)
    guided: Tensor = without + request.guidance * (given - without)
    return guided
