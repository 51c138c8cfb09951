"""Both caches of a run: captions first, then clips, so that no two encoders are ever in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from simpletuner.caching.fingerprint import encoder_identity
from simpletuner.caching.latents import LatentCache, cache_latents
from simpletuner.caching.prompts import PromptCache, cache_prompts
from simpletuner.config.run_config import RunConfig
from simpletuner.events.types import Event
from simpletuner.models.family import Autoencoder
from simpletuner.recipes.plan import RunPlan
from simpletuner.runtime.host import Host, release_memory

DTYPES = {"no": torch.float32, "default": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}


def fill_caches(
    config: RunConfig, plan: RunPlan, host: Host, emit: Callable[[Event], None]
) -> tuple[LatentCache, PromptCache]:
    """Encode what is missing; an encoder is loaded only if something is, and dropped afterwards.

    Raises:
        UserError: If the disk fills up (exit code 6); finished entries stay and are used again.
    """
    text_dtype = DTYPES[config.precision.mixed_precision]
    captions = {caption for sample in plan.samples for caption in sample.captions}
    prompts = cache_prompts(
        sorted(captions | validation_texts(config) | {""}),
        plan.prompt_folder,
        encoder_identity(plan.source.identity("text"), dtype=str(text_dtype)),
        config.model.tokenizer_max_length,
        lambda: plan.family.load_prompt_encoder(plan.source, text_dtype, host.device),
        batch_size=config.caching.text_encoder_batch_size,
        emit=emit,
    )
    if prompts.encoded:
        release_memory(host.device)
    latents = cache_latents(
        plan.samples,
        plan.storages,
        plan.latent_folders,
        autoencoder_identity(config, plan),
        lambda: load_autoencoder(config, plan, host),
        batch_size=config.caching.vae_batch_size,
        workers=config.caching.max_workers,
        emit=emit,
    )
    if latents.encoded:
        release_memory(host.device)
    return latents, prompts


def load_autoencoder(config: RunConfig, plan: RunPlan, host: Host) -> Autoencoder:
    """The run's autoencoder, for encoding clips and for decoding videos."""
    return plan.family.load_autoencoder(
        plan.source, DTYPES[config.precision.vae_dtype], host.device, tiling=config.caching.vae_enable_tiling
    )


def autoencoder_identity(config: RunConfig, plan: RunPlan) -> str:
    """Everything about the autoencoder that shapes a latent."""
    return encoder_identity(
        plan.source.identity("autoencoder"),
        dtype=str(DTYPES[config.precision.vae_dtype]),
        tiling=config.caching.vae_enable_tiling,
    )


def validation_texts(config: RunConfig) -> set[str]:
    """All texts that validation needs, the negative prompt included."""
    if config.validation.validation_disable or not config.prompts:
        return set()
    return {config.validation.validation_negative_prompt, *(entry.prompt for entry in config.prompts)}
