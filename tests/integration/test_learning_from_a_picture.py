"""A model trained with given first frames uses them: without motion, the first frame tells the rest."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from simpletuner.config.sections.flow import FlowSection
from simpletuner.config.sections.model import ModelSection
from simpletuner.data.batch import Batch
from simpletuner.data.sample import BucketKey
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.objectives.flow_matching import FlowMatching

CPU = torch.device("cpu")
STEPS, COUNT = 80, 16


def still_clips(first: int, width: int) -> Batch:
    """Clips whose latent frames are all alike and known from nothing but the first one."""
    numbers = tuple(range(first, first + COUNT))
    generator = torch.Generator().manual_seed(first)
    kinds = torch.randint(0, 2, (COUNT, 1, 1, 1, 2), generator=generator).float() * 2 - 1
    return Batch(
        latents=kinds.expand(-1, 128, 3, 1, -1).clone(),
        prompt_embeds=torch.zeros(COUNT, 4, width),
        prompt_mask=torch.ones(COUNT, 4, dtype=torch.bool),
        frame_rates=torch.full((COUNT,), 25.0),
        bucket=BucketKey(64, 32, 17),
        sample_numbers=numbers,
        sample_names=("d/a.mp4",) * COUNT,
        captions=("",) * COUNT,
        share=1.0,
        ends_step=True,
        epoch=1,
        is_i2v=(True,) * COUNT,
    )


def error_of(transformer: nn.Module, source: object, batch: Batch, pictures: Tensor) -> float:
    """Mean squared error of the velocity of frames 1 and 2 at pure noise, when the model is shown `pictures`."""
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    noised = noise.clone()
    noised[:, :, 0] = pictures
    with torch.no_grad():
        velocity = FAMILY.predict(
            transformer, source, noised, torch.ones(COUNT), batch.prompt_embeds, batch.prompt_mask,
            batch.frame_rates, first_frame_sigmas=torch.zeros(COUNT),
        )  # type: ignore[arg-type] # fmt: skip
    return (velocity - (noise - batch.latents))[:, :, 1:].square().mean().item()


def test_the_given_frame_is_used(miniature: Path) -> None:
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(miniature)))
    transformer = FAMILY.load_transformer(source, torch.float32, CPU).requires_grad_(True)
    _, width = FAMILY.input_widths(transformer)
    settings = FlowSection(ltx_i2v_prob=1.0, ltx_protect_first_frame=True, flow_schedule_shift=20.0)
    objective = FlowMatching(FAMILY, source, settings, 1)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=2e-3)
    for step in range(STEPS):
        (term,) = objective(transformer, still_clips(step * COUNT, width), step + 1)
        term.value.backward()
        optimizer.step()
        optimizer.zero_grad()
    fresh = still_clips(10**6, width)
    right = error_of(transformer, source, fresh, fresh.latents[:, :, 0])
    wrong = error_of(transformer, source, fresh, -fresh.latents[:, :, 0])
    assert right < 0.3
    assert wrong > 4 * right
