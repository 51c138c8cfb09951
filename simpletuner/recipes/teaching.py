"""The teacher of CREPA: found before anything is encoded, its features cached or made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from simpletuner.caching.features import (
    FeatureCache,
    FeatureSettings,
    MakeFeatures,
    cache_features,
    find_feature_keys,
)
from simpletuner.caching.fingerprint import fingerprint
from simpletuner.caching.latents import LatentCache
from simpletuner.caching.store import Key
from simpletuner.config.run_config import RunConfig
from simpletuner.events.types import Event
from simpletuner.maths.alignment import match_grid
from simpletuner.models.family import Autoencoder
from simpletuner.models.vision_teacher import TeacherPlace, VisionTeacher, find_teacher, load_teacher
from simpletuner.recipes.encode import autoencoder_identity, latent_settings, load_autoencoder, storing
from simpletuner.recipes.plan import RunPlan
from simpletuner.runtime.host import Host, release_memory


@dataclass(frozen=True)
class Teaching:
    """What a run learns from beside its clips.

    Attributes:
        width: Width of the teacher's features; 0 without a teacher.
        cache: Features of every trained clip; None where they are made on the spot or not at all.
        live: Makes them on the spot; None likewise.
    """

    width: int = 0
    cache: FeatureCache | None = None
    live: MakeFeatures | None = None


def prepare_teaching(
    config: RunConfig, plan: RunPlan, host: Host, latents: LatentCache, emit: Callable[[Event], None]
) -> Teaching:
    """Features of every clip that is trained, or what makes them; nothing where no objective asks.

    Raises:
        UserError: If the teacher is missing, or the disk is full.
    """
    if not config.crepa.needs_encoder:
        return Teaching()
    place = find_teacher(config.crepa.crepa_encoder)
    if not config.crepa.crepa_cache_features:
        return Teaching(place.width, live=_load(config, plan, host, place))
    cache = cache_features(
        tuple(sample for sample in plan.samples if latents.holds(sample)),
        latents.read,
        latent_settings(config, plan, host.device).facts,
        plan.latent_folders,
        _settings(config, plan, place),
        lambda: _load(config, plan, host, place),
        emit=emit,
    )
    release_memory()
    return Teaching(place.width, cache)


def feature_keys(config: RunConfig, plan: RunPlan, device: torch.device) -> dict[str, list[Key]]:
    """Data set -> the entries of the teacher's features that training needs; empty where it needs none.

    Raises:
        UserError: If the teacher is missing.
    """
    if not (config.crepa.needs_encoder and config.crepa.crepa_cache_features):
        return {}
    settings = _settings(config, plan, find_teacher(config.crepa.crepa_encoder))
    facts = latent_settings(config, plan, device).facts
    keys = find_feature_keys(plan.samples, facts, plan.latent_folders, settings)
    found: dict[str, list[Key]] = {}
    for sample in plan.samples:
        found.setdefault(sample.dataset, []).append(keys[sample.name])
    return found


def _settings(config: RunConfig, plan: RunPlan, place: TeacherPlace) -> FeatureSettings:
    facts = {
        "teacher": place.identity(),
        "picture_size": config.crepa.crepa_encoder_image_size,
        "autoencoder": autoencoder_identity(config, plan),
    }
    return FeatureSettings(fingerprint(facts), storing(config), pooled=not config.crepa.crepa_spatial_align)


def _load(config: RunConfig, plan: RunPlan, host: Host, place: TeacherPlace) -> MakeFeatures:
    """Autoencoder and teacher, as one function from latents to features."""
    autoencoder = load_autoencoder(config, plan, host)
    autoencoder.drop_encoder()
    on_accelerator = host.device.type != "cpu"
    teacher = load_teacher(
        place,
        torch.bfloat16 if on_accelerator else torch.float32,
        host.device,
        size=config.crepa.crepa_encoder_image_size,
        frames_at_once=config.crepa.crepa_encoder_frames_batch_size,
    )
    return features_of(autoencoder, teacher, plan.family.grid.temporal)


def features_of(autoencoder: Autoencoder, teacher: VisionTeacher, temporal: int) -> MakeFeatures:
    """Latents [B, C, F, H, W] -> features [B, F, H, W, E] on their grid.

    Latent frame k is taught by pixel frame `temporal` * k, the last one of those it stands for. Clips are decoded
    one at a time: so a clip's features do not depend on the batch it is in.
    """

    @torch.no_grad()
    def make(latents: Tensor) -> Tensor:
        height, width = latents.shape[3:]
        clips = []
        for clip in latents.split(1):
            pixels = autoencoder.decode(clip)[0]  # [3, T, H, W] in [-1, 1]
            pictures = (pixels[:, ::temporal].transpose(0, 1) + 1) / 2
            clips.append(match_grid(teacher.features(pictures), height, width))
        return torch.stack(clips)

    return make
