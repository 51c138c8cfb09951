"""Both caches of a run: captions first, then clips, so that no two encoders are ever in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from simpletuner.caching.fingerprint import encoder_identity
from simpletuner.caching.latents import LatentCache, LatentSettings, cache_latents
from simpletuner.caching.prompts import PromptCache, PromptSettings, cache_prompts
from simpletuner.caching.store import Storing
from simpletuner.config.dataset import ClipDataset
from simpletuner.config.run_config import RunConfig
from simpletuner.events.types import Event
from simpletuner.models.family import Autoencoder
from simpletuner.recipes.plan import RunPlan
from simpletuner.runtime.host import Host, release_memory

DTYPES = {"no": torch.float32, "default": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}


class AutoencoderShelf:
    """Where the run gets its autoencoder; with `keep_vae_loaded` the one that was loaded first is lent again."""

    def __init__(self, config: RunConfig, plan: RunPlan, host: Host) -> None:
        self._config, self._plan, self._host = config, plan, host
        self._kept: Autoencoder | None = None

    def __call__(self, place: torch.device | None = None) -> Autoencoder:
        """The autoencoder, for encoding clips or for decoding videos; loaded onto `place`, else the run's device."""
        if self._kept is not None:
            return self._kept
        host = self._host if place is None else replace(self._host, device=place)
        autoencoder = load_autoencoder(self._config, self._plan, host)
        if self._config.caching.keep_vae_loaded:
            self._kept = autoencoder
        return autoencoder


def fill_caches(
    config: RunConfig,
    plan: RunPlan,
    host: Host,
    emit: Callable[[Event], None],
    autoencoders: Callable[[], Autoencoder] | None = None,
    *,
    all_now: bool = False,
    partly: bool = False,
) -> tuple[LatentCache, PromptCache]:
    """Encode what is missing; an encoder is loaded only if something is, and dropped afterwards.

    Args:
        config: The run's configuration.
        plan: What the run works on.
        host: The machine.
        emit: Receives progress and notices.
        autoencoders: The run's `AutoencoderShelf`, if it has one.
        all_now: Whether what is set to be encoded on demand is encoded now too.
        partly: Whether the plan holds only a part of the run's samples, so that other captions are no waste.

    Raises:
        UserError: If the disk fills up (exit code 6); finished entries stay and are used again.
    """
    text_dtype = DTYPES[config.precision.mixed_precision]
    for_texts, for_clips = prompt_settings(config, plan), latent_settings(config, plan, host.device)
    for_texts = replace(for_texts, shared=partly)
    if all_now:
        for_texts = replace(for_texts, on_demand=False, unwritten=False)
        # What lies elsewhere in each epoch has nothing that could be kept.
        for_clips = replace(for_clips, on_demand=for_clips.redrawn, unwritten=for_clips.redrawn)
    prompts = cache_prompts(
        texts_of(config, plan),
        for_texts,
        lambda: plan.family.load_prompt_encoder(
            plan.source,
            text_dtype,
            host.device,
            precision=config.precision.text_encoder_1_precision,
            streamed=config.memory.group_offload_text_encoder,
        ),
        emit=emit,
    )
    if prompts.encoded:
        release_memory()
    shelf, filling = autoencoders or AutoencoderShelf(config, plan, host), True

    def lend() -> Autoencoder:
        # What is encoded while training runs gets one of its own: validation may be decoding with the shelf's.
        return shelf() if filling else load_autoencoder(config, plan, host)

    latents = cache_latents(
        plan.all_samples,
        plan.storages,
        plan.latent_folders,
        for_clips,
        lend,
        emit=emit,
    )
    filling = False
    if latents.encoded:
        release_memory()
    return latents, prompts


def latent_settings(config: RunConfig, plan: RunPlan, device: torch.device) -> LatentSettings:
    """How this run makes and keeps its latents."""
    everywhere = config.caching
    waits = everywhere.vae_cache_ondemand or everywhere.vae_cache_disable or not everywhere.vae_cache_preprocess
    return LatentSettings(
        identity=autoencoder_identity(config, plan),
        dtype=DTYPES[everywhere.vae_cache_dtype],
        storing=storing(config),
        batch_size=everywhere.vae_batch_size,
        workers=everywhere.max_workers,
        device=device,
        on_demand=frozenset(entry.id for entry in config.all_datasets if waits or _is_unplanned(entry)),
        unwritten=frozenset(
            entry.id
            for entry in config.all_datasets
            if everywhere.vae_cache_disable or entry.vae_cache_disable or entry.is_redrawn
        ),
        redrawn=frozenset(entry.id for entry in config.datasets if entry.is_redrawn),
        scanned=frozenset(entry.id for entry in config.all_datasets if entry.scan_for_errors),
    )


def _is_unplanned(entry: ClipDataset) -> bool:
    """Whether a data set asks for its clips to be encoded when they are first read."""
    return entry.vae_cache_ondemand or entry.vae_cache_disable or entry.is_redrawn


def prompt_settings(config: RunConfig, plan: RunPlan) -> PromptSettings:
    """How this run makes and keeps its text features."""
    everywhere, store = config.caching, config.text_embeds
    waits = everywhere.text_cache_ondemand or everywhere.text_cache_disable
    return PromptSettings(
        folder=plan.prompt_folder,
        identity=encoder_identity(
            plan.source.identity("text"),
            dtype=str(DTYPES[config.precision.mixed_precision]),
            precision=config.precision.text_encoder_1_precision,
        ),
        token_length=config.model.tokenizer_max_length,
        storing=storing(config),
        batch_size=store.text_encoder_batch_size or everywhere.text_encoder_batch_size,
        on_demand=waits or store.text_cache_ondemand or store.text_cache_disable,
        unwritten=everywhere.text_cache_disable or store.text_cache_disable,
        in_memory=everywhere.text_embed_full_cache,
    )


def storing(config: RunConfig) -> Storing:
    """How new entries are kept."""
    return Storing(config.caching.cache_format, config.caching.compress_disk_cache)


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


def texts_of(config: RunConfig, plan: RunPlan) -> list[str]:
    """Every text whose features the run needs, in a fixed order."""
    captions = {caption for sample in plan.all_samples for caption in sample.captions}
    return sorted(captions | validation_texts(config) | {""})


def validation_texts(config: RunConfig) -> set[str]:
    """All texts that validation needs, the negative prompt included."""
    if not config.validation.makes_videos or not config.prompts:
        return set()
    return {config.validation.validation_negative_prompt, *(entry.prompt for entry in config.prompts)}
