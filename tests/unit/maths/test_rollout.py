"""Scheduled sampling's numbers against closed forms."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from simpletuner.maths.rollout import (
    compensation_weights,
    draw_offsets,
    drift_loss,
    ramped_chance,
    source_levels,
)

RAMP = {"fixed": 0.3, "start": 0.1, "end": 0.5, "ramp_steps": 100, "start_step": 20, "shape": "linear"}


@pytest.mark.parametrize(
    ("step", "changed", "expected"),
    [
        (19, {}, 0.0),
        (20, {}, 0.1),
        (70, {}, 0.3),
        (120, {}, 0.5),
        (900, {}, 0.5),
        (45, {"shape": "cosine"}, 0.1 + 0.4 * (1 - math.cos(math.pi / 4)) / 2),
        (45, {"ramp_steps": 0}, 0.3),
        (19, {"ramp_steps": 0}, 0.0),
        (1, {"ramp_steps": 0, "start_step": 0, "fixed": 0.0}, 0.0),
    ],
)
def test_chance(step: int, changed: dict, expected: float) -> None:
    assert ramped_chance(step, **{**RAMP, **changed}) == pytest.approx(expected)


def test_offsets_follow_their_strategy() -> None:
    uniforms = (torch.arange(10_000) + 0.5) / 10_000
    counts = Counter(draw_offsets(uniforms, 4, "uniform").tolist())
    assert counts == dict.fromkeys(range(5), 2000)
    early, late = (draw_offsets(uniforms, 4, strategy).float().mean().item() for strategy in
                   ("biased_early", "biased_late"))  # fmt: skip
    assert early == pytest.approx(4 / 3, abs=0.05)
    assert late == pytest.approx(8 / 3, abs=0.05)
    for strategy in ("uniform", "biased_early", "biased_late"):
        assert set(draw_offsets(uniforms, 4, strategy).tolist()) == set(range(5))
        assert draw_offsets(uniforms, 0, strategy).tolist() == [0] * 10_000


def test_paths_lie_on_the_grid_and_shorten_at_its_end() -> None:
    grid = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.0])
    paths = source_levels(torch.tensor([0.5, 0.95, 0.3, 0.5]), torch.tensor([2, 3, 1, 0]), grid)
    assert [path.tolist() for path in paths] == [
        pytest.approx([0.9, 0.6, 0.5]), pytest.approx([1.0, 0.95]), pytest.approx([0.6, 0.3]), pytest.approx([0.5])
    ]  # fmt: skip


def test_weights_look_where_the_roll_out_changed_most() -> None:
    clean, rolled = torch.zeros(2, 4), torch.tensor([[0.0, 1.0, -3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    weights = compensation_weights(clean, rolled, 0.5)
    assert weights[0].tolist() == pytest.approx([1.0, 1.5, 2.5, 1.0])
    assert weights[1].tolist() == [1.0] * 4
    assert weights.mean(1).tolist() == pytest.approx([1.5, 1.0])


def test_drift_is_the_distance_of_directions() -> None:
    latents, state = torch.zeros(3, 2), torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    ways = torch.tensor([[5.0, 0.0], [0.0, 1.0], [-0.1, 0.0]])
    assert drift_loss(ways, state, latents).tolist() == pytest.approx([0.0, 2.0, 4.0])


def test_gradient_of_the_drift_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    prediction, state, latents = (torch.randn(1, 5, generator=generator) for _ in range(3))
    prediction.requires_grad_()
    drift_loss(prediction, state, latents).sum().backward()
    assert prediction.grad is not None
    for place in range(5):
        moved = torch.zeros(1, 5).index_fill_(1, torch.tensor([place]), 1e-2)
        up, down = (drift_loss(prediction.detach() + sign * moved, state, latents) for sign in (1, -1))
        assert prediction.grad[0, place].item() == pytest.approx(((up - down) / 2e-2).item(), abs=1e-3)
