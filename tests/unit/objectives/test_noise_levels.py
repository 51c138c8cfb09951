"""Every way to draw noise levels gives its distribution, whatever the batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from simpletuner.config.sections.flow import FlowSection
from simpletuner.objectives.noise_levels import STRATA, NoiseLevels

DRAWS = range(8192)


def draw(numbers: Any = DRAWS, shift: float = 1.0, seed: int = 3, **settings: Any) -> torch.Tensor:
    return NoiseLevels(FlowSection(**settings), seed).draw(list(numbers), shift)


def shares_below(levels: torch.Tensor, at: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(levels.numpy()), at) / len(levels)


GRID = np.linspace(0.05, 0.95, 19)


def logit_normal_share(at: np.ndarray, scale: float = 1.0, shift: float = 1.0) -> np.ndarray:
    plain = at / (shift + (1 - shift) * at)
    return np.array([0.5 * (1 + math.erf(math.log(s / (1 - s)) / scale / math.sqrt(2))) for s in plain])


@pytest.mark.parametrize("sampling", ["independent", "stratified", "antithetic"])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, logit_normal_share(GRID)),
        ({"flow_sigmoid_scale": 2.0}, logit_normal_share(GRID, 2.0)),
        ({"flow_use_uniform_schedule": True}, GRID),
        ({"flow_use_beta_schedule": True}, 3 * GRID**2 - 2 * GRID**3),
        ({"flow_use_beta_schedule": True, "flow_beta_schedule_alpha": 1.0, "flow_beta_schedule_beta": 3.0},
         1 - (1 - GRID) ** 3),
        ({"flow_cubic_schedule_weights": (0.0, 1.0)}, GRID**2),
        ({"flow_cubic_schedule_weights": (1.0, 1.0, 1.0)}, GRID),
    ],
)  # fmt: skip
def test_distributions(settings: dict[str, Any], expected: np.ndarray, sampling: str) -> None:
    found = shares_below(draw(flow_sigma_sampling=sampling, **settings), GRID)
    # Kolmogorov's bound at 1 in a million for independent draws; spread draws are far nearer.
    limit = 2.7 / math.sqrt(len(DRAWS)) if sampling != "stratified" else 0.004
    assert np.abs(found - expected).max() < limit


@pytest.mark.parametrize("sampling", ["independent", "stratified"])
def test_the_shift_moves_every_distribution(sampling: str) -> None:
    found = shares_below(draw(shift=3.0, flow_sigma_sampling=sampling), GRID)
    assert np.abs(found - logit_normal_share(GRID, shift=3.0)).max() < 0.03


def test_a_level_depends_on_the_number_alone() -> None:
    for sampling in ("independent", "stratified", "antithetic"):
        whole = draw(range(200), flow_sigma_sampling=sampling)
        assert torch.equal(whole[[7, 130, 64]], draw([7, 130, 64], flow_sigma_sampling=sampling))
        assert not torch.equal(whole, draw(range(200), seed=4, flow_sigma_sampling=sampling))


def test_strata_hold_one_draw_each_and_are_visited_in_another_order_each_time() -> None:
    levels = draw(range(3 * STRATA), flow_sigma_sampling="stratified", flow_use_uniform_schedule=True)
    orders = (levels.reshape(3, STRATA) * STRATA).long()
    for order in orders:
        assert sorted(order.tolist()) == list(range(STRATA))
    assert orders[0].tolist() != orders[1].tolist() != orders[2].tolist()


def test_antithetic_pairs_mirror_each_other() -> None:
    levels = draw(range(100), flow_sigma_sampling="antithetic").reshape(50, 2)
    assert torch.allclose(levels.sum(1), torch.ones(50), atol=1e-5)


def test_spread_draws_have_a_steadier_mean() -> None:
    deviation = {
        sampling: draw(flow_sigma_sampling=sampling).reshape(-1, STRATA).mean(1).std().item()
        for sampling in ("independent", "stratified", "antithetic")
    }
    assert deviation["stratified"] < deviation["independent"] / 5
    assert deviation["antithetic"] < deviation["independent"] / 5


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_slice_keeps_the_proportions_inside_it(invert: bool, shift: float) -> None:
    levels = draw(shift=shift, refiner_training=True, refiner_training_strength=0.4,
                  refiner_training_invert_schedule=invert)  # fmt: skip
    low, high = (0.4, 1.0) if invert else (0.0, 0.4)
    assert low - 1e-5 <= levels.min() <= levels.max() <= high + 1e-5
    border = logit_normal_share(np.array([0.4]), shift=shift)[0]
    inside = np.linspace(low + 0.02, high - 0.02, 9)
    below = logit_normal_share(inside, shift=shift)
    expected = (below - border) / (1 - border) if invert else below / border
    assert np.abs(shares_below(levels, inside) - expected).max() < 0.03


def test_fixed_lists_are_read_as_shares_or_as_time_steps_and_are_not_shifted() -> None:
    shares = draw(range(6), shift=3.0, flow_custom_timesteps=(0.25, 0.5, 1.0), flow_timesteps_mode="round-robin")
    assert shares.tolist() == [0.25, 0.5, 1.0, 0.25, 0.5, 1.0]
    steps = draw(range(2000), flow_custom_timesteps=(100.0, 999.0))
    assert sorted(set(steps.tolist())) == pytest.approx([0.1, 0.999])
    assert (steps == steps.min()).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_no_level_is_without_noise_or_infinite() -> None:
    for settings in ({"flow_use_uniform_schedule": True}, {"flow_sigma_sampling": "stratified"}):
        levels = draw(**settings)
        assert 0 < levels.min() <= levels.max() < 1
