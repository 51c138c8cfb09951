"""Generating videos: repeatable, without side effects, on the right noise levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from simpletuner.models.family import GenerationRequest
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.positions import token_coordinates
from simpletuner.models.ltxvideo.sampling import build_scheduler

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(resolved):
    """A function from a release to (transformer, source, autoencoder, request)."""

    def give(release, **options):
        source = resolved(release, **options)
        generator = torch.Generator().manual_seed(0)
        embeds = torch.randn(2, 8, 64, generator=generator)
        masks = torch.tensor([[True] * 6 + [False] * 2, [True] + [False] * 7])
        request = GenerationRequest(embeds[0], masks[0], embeds[1], masks[1], 96, 64, 9, 25.0, 3.0, 3, 7)
        return (
            FAMILY.load_transformer(source, torch.float32, CPU),
            source,
            FAMILY.load_autoencoder(source, torch.float32, CPU),
            request,
        )

    return give


@pytest.mark.parametrize("release", ["0.9.0", "0.9.1", "0.9.5"])
def test_equal_requests_give_equal_frames_and_leave_nothing_behind(parts, release):
    transformer, source, autoencoder, request = parts(release)
    transformer.train()
    transformer.transformer_blocks[0].eval()
    modes = [module.training for module in transformer.modules()]
    state, steps = torch.get_rng_state(), []
    first = FAMILY.generate(transformer, source, autoencoder, request, steps.append)
    assert first.shape == (9, 64, 96, 3)
    assert first.dtype == np.uint8
    assert first.std() > 1
    assert [(step.number, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in transformer.modules()] == modes
    torch.randn(3)
    assert np.array_equal(FAMILY.generate(transformer, source, autoencoder, request), first)
    other = FAMILY.generate(transformer, source, autoencoder, replace(request, seed=8))
    assert not np.array_equal(other, first)


def test_guidance_of_one_calls_the_model_once_per_step(parts):
    transformer, source, autoencoder, request = parts("0.9.5")
    batches = []
    hook = transformer.register_forward_pre_hook(
        lambda _, __, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    FAMILY.generate(transformer, source, autoencoder, replace(request, guidance=1.0))
    FAMILY.generate(transformer, source, autoencoder, request)
    hook.remove()
    assert batches == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("release", ["0.9.0", "0.9.5"])
def test_one_step_is_no_division_by_zero(parts, release):
    transformer, source, autoencoder, request = parts(release)
    frames = FAMILY.generate(transformer, source, autoencoder, replace(request, num_inference_steps=1, num_frames=1))
    assert frames.shape == (1, 64, 96, 3)
    assert frames.std() > 1


@pytest.mark.parametrize(("release", "forced"), [("0.9.0", "causal"), ("0.9.5", "plain")])
def test_forced_positions_reach_the_sampler(parts, release, forced):
    transformer, source, autoencoder, request = parts(release, ltx_positions=forced)
    seen = []
    hook = transformer.rope.register_forward_pre_hook(lambda _, args: seen.append(args[5]))
    FAMILY.generate(transformer, source, autoencoder, request)
    hook.remove()
    expected = token_coordinates(forced, 2, 2, 3, torch.tensor([25.0, 25.0]))
    assert len(seen) == 3
    assert all(torch.equal(coordinates, expected) for coordinates in seen)
    assert not transformer._forward_pre_hooks


def shifted_reference(steps: int, mu: float) -> list[float]:
    """Noise levels of 0.9.0 and 0.9.1 in float64: linear, shifted by exp(mu), stretched to end at 0.1."""
    shift = np.exp(mu)
    levels = np.linspace(1.0, 1 / steps, steps)
    levels = shift * levels / (1 + (shift - 1) * levels)
    if steps > 1:
        levels = 1 - (1 - levels) * (1 - 0.1) / (1 - levels[-1])
    return [*levels, 0.0]


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 40])
@pytest.mark.parametrize("mu", [0.95, 2.0])
def test_shifted_levels(steps, mu):
    scheduler = build_scheduler("shifted", steps)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    np.testing.assert_allclose(scheduler.sigmas, shifted_reference(steps, mu), atol=2e-6)
    if (steps, mu) == (4, 2.0):
        np.testing.assert_allclose(scheduler.sigmas, [1, 0.8655, 0.6285, 0.1, 0], atol=1e-4)


def test_shift_follows_the_token_count():
    config = build_scheduler("shifted", 8).config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    assert config.base_shift + slope * (4032 - config.base_image_seq_len) == pytest.approx(2.0271, abs=1e-4)


def linear_quadratic_reference(steps: int) -> list[float]:
    """Noise levels of 0.9.5 and later in float64: half the steps remove 2.5 % of the noise."""
    if steps == 1:
        return [1.0, 0.0]
    linear, theta = steps // 2, 0.025
    quadratic = steps - linear
    bend = (1 - theta - theta * quadratic / linear) / quadratic**2
    removed = [theta * i / linear for i in range(linear)]
    removed += [theta + theta / linear * (i - linear) + bend * (i - linear) ** 2 for i in range(linear, steps)]
    return [*(1 - value for value in removed), 0.0]


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 40])
def test_linear_quadratic_levels_as_sampled(parts, steps):
    transformer, source, autoencoder, request = parts("0.9.5")
    times = []
    hook = transformer.register_forward_pre_hook(
        lambda _, __, kwargs: times.append(float(kwargs["timestep"].flatten()[0])), with_kwargs=True
    )
    request = replace(request, num_inference_steps=steps, num_frames=1, guidance=1.0, width=32, height=32)
    FAMILY.generate(transformer, source, autoencoder, request)
    hook.remove()
    np.testing.assert_allclose(times, [1000 * s for s in linear_quadratic_reference(steps)[:-1]], atol=2e-3)
    if steps == 8:
        stored = [1, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219]
        np.testing.assert_allclose(times, [1000 * s for s in stored], atol=0.1)


@pytest.mark.parametrize("steps", [2, 4])
def test_shifted_levels_as_sampled(parts, steps):
    transformer, source, autoencoder, request = parts("0.9.1")
    times = []
    hook = transformer.register_forward_pre_hook(
        lambda _, __, kwargs: times.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    FAMILY.generate(transformer, source, autoencoder, replace(request, num_inference_steps=steps))
    hook.remove()
    mu = 0.95 + (12 - 1024) * (2.05 - 0.95) / (4096 - 1024)  # 2 x 2 x 3 tokens
    np.testing.assert_allclose(times, [1000 * s for s in shifted_reference(steps, mu)[:-1]], atol=2e-3)


@pytest.mark.parametrize("release", ["0.9.0", "0.9.5"])
def test_an_oracle_is_followed_to_the_clip(parts, release):
    """With the true velocity the trajectory ends at the clip, whichever pipeline integrates it."""
    from simpletuner.models.ltxvideo.packing import pack
    from simpletuner.models.ltxvideo.sampling import generate_latents

    transformer, source, autoencoder, request = parts(release)
    request = replace(request, guidance=1.0, num_inference_steps=6)
    noise = torch.randn(1, 128, 2, 2, 3, generator=torch.Generator().manual_seed(request.seed))
    clip = torch.randn(1, 128, 2, 2, 3)
    hook = transformer.register_forward_hook(lambda *_: (pack(noise - clip),))
    latents = generate_latents(transformer, source, autoencoder, request)
    hook.remove()
    torch.testing.assert_close(latents, clip, rtol=0, atol=1e-5)


@pytest.mark.parametrize("release", ["0.9.0", "0.9.5"])
def test_a_step_tells_the_clean_latents_that_its_velocity_promises(parts, release):
    """Trap 90: x - sigma * v at every step, and at the last one the latents of the video to the last bit."""
    from simpletuner.models.ltxvideo.packing import unpack
    from simpletuner.models.ltxvideo.sampling import generate_latents, levels_of

    transformer, source, autoencoder, request = parts(release)
    request = replace(request, guidance=1.0, num_inference_steps=5)
    seen, steps = [], []
    hook = transformer.register_forward_hook(
        lambda _, __, kwargs, output: seen.append((kwargs["hidden_states"], output[0])), with_kwargs=True
    )
    latents = generate_latents(transformer, source, autoencoder, request, steps.append)
    hook.remove()
    levels = levels_of(source, request).tolist()
    for step, (noised, velocity), now, after in zip(steps, seen, levels[:-1], levels[1:], strict=True):
        expected = unpack(noised - now * velocity, 2, 2, 3)
        torch.testing.assert_close(step.clean_latents, expected, rtol=1e-5, atol=1e-5)
        assert step.sigma == after
    assert torch.equal(steps[-1].clean_latents, latents)
    assert not torch.allclose(steps[0].clean_latents, latents, atol=1e-2)


def test_noise_may_come_from_the_device_s_own_generator(parts):
    from simpletuner.models.ltxvideo.sampling import generate_latents

    transformer, source, autoencoder, request = parts("0.9.5")
    on_cpu = generate_latents(transformer, source, autoencoder, request)
    # On the CPU both are the same generator; the path itself is what runs here.
    request = replace(request, draws_on_device=True)
    assert torch.equal(generate_latents(transformer, source, autoencoder, request), on_cpu)
