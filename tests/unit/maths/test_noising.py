"""The path between data and noise: direction, inverse, precision."""

from __future__ import annotations

import itertools

import torch

from simpletuner.maths.losses import squared_error
from simpletuner.maths.noising import clean_estimate, noise_latents, velocity_target

_GENERATOR = torch.Generator().manual_seed(1)
LATENTS = torch.randn(3, 8, 2, 3, 5, generator=_GENERATOR)
NOISE = torch.randn(3, 8, 2, 3, 5, generator=_GENERATOR)


def test_zero_is_clean_and_one_is_noise() -> None:
    noised = noise_latents(LATENTS, NOISE, torch.tensor([0.0, 1.0, 0.5]))
    assert torch.equal(noised[0], LATENTS[0])
    assert torch.equal(noised[1], NOISE[1])
    assert torch.allclose(noised[2], (LATENTS[2] + NOISE[2]) / 2)


def test_target_points_from_data_to_noise() -> None:
    step = noise_latents(LATENTS, NOISE, torch.full((3,), 0.75)) - noise_latents(LATENTS, NOISE, torch.full((3,), 0.25))
    assert torch.allclose(step, 0.5 * velocity_target(LATENTS, NOISE), atol=1e-6)


def test_true_velocity_gives_the_clean_latents_back() -> None:
    sigmas = torch.tensor([0.1, 0.5, 0.95])
    estimate = clean_estimate(noise_latents(LATENTS, NOISE, sigmas), velocity_target(LATENTS, NOISE), sigmas)
    assert torch.allclose(estimate, LATENTS, atol=1e-6)


def test_euler_steps_along_the_true_velocity_reach_the_data() -> None:
    state = NOISE.clone()
    levels = torch.linspace(1.0, 0.0, 9)
    for now, after in itertools.pairwise(levels):
        state = state + (after - now) * velocity_target(LATENTS, NOISE)
    assert torch.allclose(state, LATENTS, atol=1e-5)


def test_bfloat16_latents_are_noised_in_float32() -> None:
    latents = LATENTS.bfloat16()
    noised = noise_latents(latents, NOISE, torch.full((3,), 1e-3))
    exact = 0.999 * latents.double() + 0.001 * NOISE.double()
    assert noised.dtype == torch.float32
    assert (noised.double() - exact).abs().max() < 1e-6
    # The same in bfloat16 would lose most of the noise.
    assert ((0.999 * latents + 0.001 * NOISE.bfloat16()).double() - exact).abs().max() > 1e-3


def test_squared_error_is_one_float32_mean_per_sample() -> None:
    prediction = torch.stack([LATENTS[0], LATENTS[1] + 2, LATENTS[2] - 0.5])
    losses = squared_error(prediction, LATENTS)
    assert losses.shape == (3,)
    assert torch.allclose(losses, torch.tensor([0.0, 4.0, 0.25]))
    assert squared_error(prediction.bfloat16(), LATENTS).dtype == torch.float32
