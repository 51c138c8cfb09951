"""The small checkpoint: complete, the same every time, and fit to be trained on."""

from __future__ import annotations

import pytest
import torch
from diffusers import LTXConditionPipeline, LTXPipeline

from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.model import ModelSection
from simpletuner.core.errors import UserError
from simpletuner.models.adapters import lora
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.miniature import write_miniature

CPU = torch.device("cpu")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bytes_depend_on_the_arguments_alone(tmp_path):
    state = torch.get_rng_state()
    first = contents(write_miniature(tmp_path / "a", seed=3, layers=1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(5)
    assert contents(write_miniature(tmp_path / "a", seed=3, layers=1)) == first  # replaces what is there
    other = contents(write_miniature(tmp_path / "b", seed=4, layers=1))
    assert other.keys() == first.keys()
    assert {str(path.parent) for path in first if other[path] != first[path]} == {"vae", "text_encoder", "transformer"}
    assert sum(map(len, first.values())) < 20e6


@pytest.mark.parametrize(("release", "pipeline"), [("0.9.0", LTXPipeline), ("0.9.5", LTXConditionPipeline)])
def test_diffusers_loads_the_folder(checkpoint, release, pipeline, capfd):
    pipe = pipeline.from_pretrained(checkpoint(release))
    assert pipe.transformer.config.in_channels == 128
    assert pipe.vae_spatial_compression_ratio == 32
    assert pipe.vae_temporal_compression_ratio == 8
    frames = pipe(
        prompt="a red circle", negative_prompt="blurry", width=64, height=64, num_frames=9, num_inference_steps=2,
        generator=torch.Generator().manual_seed(0), output_type="np",
    ).frames  # fmt: skip
    assert frames.shape == (1, 9, 64, 64, 3)


def test_size_knobs(tmp_path):
    folder = write_miniature(tmp_path / "m", "0.9.7", layers=3, heads=2, head_dim=128, caption_channels=32)
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(folder)))
    config = FAMILY.load_transformer(source, torch.float32, CPU).config
    assert (config.num_layers, config.num_attention_heads, config.attention_head_dim) == (3, 2, 128)
    assert config.caption_channels == 32
    assert source.release == "0.9.7"


def test_unknown_release_is_refused(tmp_path):
    with pytest.raises(UserError, match="unknown LTX-Video release"):
        write_miniature(tmp_path / "m", "2.0")


def drifting_disc(seed, num_frames=17, height=96, width=160):
    """A clip [1, 3, F, H, W] of a coloured disc that moves over a shaded ground."""
    generator = torch.Generator().manual_seed(seed)
    ground, disc = torch.rand(2, 3, generator=generator) * 2 - 1
    start, speed = torch.rand(2, 2, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    clip = torch.empty(3, num_frames, height, width)
    for frame in range(num_frames):
        row, column = (0.2 + 0.6 * start) * torch.tensor([height, width]) + (speed * 8 - 4) * frame
        inside = (rows - row) ** 2 + (columns - column) ** 2 < 20**2
        clip[:, frame] = ground[:, None, None] * (0.3 + 0.7 * columns / width)
        clip[:, frame][:, inside] = disc[:, None]
    return clip[None]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_an_adapter_learns_a_clip(tmp_path, seed):
    """Fixed-noise loss falls below half of its start in 80 steps with rank 16 on all layers."""
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(write_miniature(tmp_path / "m", seed=seed))))
    latents = FAMILY.load_autoencoder(source, torch.float32, CPU).encode(drifting_disc(seed))
    assert 0.5 < latents.std() < 2
    embeds, mask = FAMILY.load_prompt_encoder(source, torch.float32, CPU).encode(["a red circle moves"])
    transformer = FAMILY.load_transformer(source, torch.float32, CPU)
    lora.attach_lora(transformer, FAMILY.adapter_targets(transformer, "all"), AdapterSection(), torch.float32, seed)

    def loss(noise, sigmas):
        levels, count = sigmas.view(-1, 1, 1, 1, 1), len(sigmas)
        noised = (1 - levels) * latents + levels * noise
        text = (embeds.expand(count, -1, -1), mask.expand(count, -1), torch.full((count,), 25.0))
        return (FAMILY.predict(transformer, source, noised, sigmas, *text) - (noise - latents)).square().mean()

    generator = torch.Generator().manual_seed(seed)
    fixed = torch.randn(8, *latents.shape[1:], generator=generator), torch.linspace(0.2, 0.8, 8)
    with torch.no_grad():
        start = loss(*fixed)
    optimizer = torch.optim.AdamW(lora.adapter_parameters(transformer).values(), lr=5e-3)
    for _ in range(80):
        sigmas = torch.randn(1, generator=generator).sigmoid()
        loss(torch.randn(latents.shape, generator=generator), sigmas).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert loss(*fixed) < 0.45 * start
