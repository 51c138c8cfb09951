"""The whole road teaches something even a model of random weights: one clip's loss falls below half.

The judge is a loss of fixed noise at fixed levels, measured on the base model and on the exported
adapter, so neither the draws of training nor the smoothing of a curve can flatter the result.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simpletuner.caching.fingerprint import encoder_identity
from simpletuner.caching.latents import LatentSettings, cache_latents
from simpletuner.caching.prompts import PromptSettings, cache_prompts
from simpletuner.config.resolve import resolve_config
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.core.files import write_json_atomic
from simpletuner.data.find import find_samples
from simpletuner.data.storage import LocalStorage
from simpletuner.data.world import write_world
from simpletuner.events.types import Event
from simpletuner.models.adapters.lora import adapter_disabled, attach_lora, load_adapter_tensors
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.miniature import write_miniature
from simpletuner.recipes.demo import RATE, Demo, demo_config, demo_datasets
from simpletuner.recipes.train import train_from_config
from simpletuner.training.snapshot import WEIGHTS_NAME

LEVELS = torch.linspace(0.1, 0.9, 9)
FOR_RANDOM_WEIGHTS = {
    "learning_rate": 3e-3,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 5,
    "train_batch_size": 2,
    "caption_dropout_probability": 0,
    "validation_disable": True,
}


def ignore(event: Event) -> None:
    """The caches' progress is no business of this test."""


def lose_no_encoder() -> None:
    raise AssertionError("everything is cached; no encoder may be loaded")


@pytest.mark.parametrize("seed", [42, pytest.param(7, marks=pytest.mark.slow)])
def test_the_demo_teaches_one_clip(tmp_path: Path, seed: int) -> None:
    from safetensors.torch import load_file

    write_miniature(tmp_path / "model", seed=0)
    write_world(tmp_path / "clips", clips=1, width=96, height=64, num_frames=17, frame_rate=RATE, seed=seed)
    settings = {**demo_config(tmp_path, Demo(steps=100)), **FOR_RANDOM_WEIGHTS}
    settings = {**settings, "pretrained_model_name_or_path": str(tmp_path / "model")}
    del settings["user_prompt_library"]
    write_json_atomic(tmp_path / "config.json", settings)
    write_json_atomic(
        tmp_path / "multidatabackend.json",
        [
            {**entry, "repeats": 1, "resolution": 64} if entry["id"] == "demo-clips" else entry
            for entry in demo_datasets(tmp_path)
            if entry["id"] != "held-out"
        ],
    )
    config = resolve_config(["--config", str(tmp_path / "config.json"), f"seed={seed}"], {}, tmp_path)
    assert train_from_config(config) == 0

    source = FAMILY.resolve(config.model)
    storages = {config.datasets[0].id: LocalStorage(tmp_path / "clips")}
    sample = find_samples(config.datasets, storages, FAMILY.grid, workers=1, emit=ignore).samples[0]
    folders = {sample.dataset: tmp_path / "cache" / "vae" / "clips"}
    autoencoder = encoder_identity(source.identity("autoencoder"), dtype=str(torch.float32))
    clips = cache_latents([sample], storages, folders, LatentSettings(autoencoder), lose_no_encoder, emit=ignore)
    text = encoder_identity(source.identity("text"), dtype=str(torch.float32))
    store = PromptSettings(tmp_path / "cache" / "text", text, 128)
    prompts = cache_prompts(sample.captions, store, lose_no_encoder, emit=ignore)
    transformer = FAMILY.load_transformer(source, torch.float32, torch.device("cpu"))
    attach_lora(transformer, FAMILY.adapter_targets(transformer, "all"), AdapterSection(), torch.float32, 0)
    weights = load_file(tmp_path / WEIGHTS_NAME)
    load_adapter_tensors(transformer, {name.removeprefix("transformer."): value for name, value in weights.items()})

    latents = clips.read(sample).expand(len(LEVELS), -1, -1, -1, -1)
    embeds, mask = prompts.read(sample.captions[0])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    levels = LEVELS.view(-1, 1, 1, 1, 1)

    def loss() -> float:
        with torch.no_grad():
            prediction = FAMILY.predict(
                transformer,
                source,
                (1 - levels) * latents + levels * noise,
                LEVELS,
                embeds.expand(len(LEVELS), -1, -1),
                mask.expand(len(LEVELS), -1),
                torch.full((len(LEVELS),), sample.frames.frame_rate),
            )
        return (prediction - (noise - latents)).square().mean().item()

    with adapter_disabled(transformer):
        before = loss()
    after = loss()
    assert after < 0.5 * before, (before, after)
