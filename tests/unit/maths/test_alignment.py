"""Cross-frame alignment against a loop in float64, with gradients by finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from simpletuner.maths.alignment import alignment_scores, course_weight, match_grid, neighbour_weights


def independent_scores(ours: np.ndarray, theirs: np.ndarray, distance: int, tau: float, cumulative: bool,
                       by_frames: bool, by_weights: bool) -> list[float]:  # fmt: skip
    """The paper's sum, written out."""
    found = []
    for clip in range(len(ours)):
        total = 0.0
        frames = ours.shape[1]
        for f in range(frames):
            value, weights = 0.0, 0.0
            for k in range(frames):
                apart = abs(k - f)
                chosen = apart == 0 or (apart <= distance if cumulative else apart == distance)
                if not chosen:
                    continue
                cosines = [
                    float(np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b)))
                    for a, b in zip(ours[clip, f], theirs[clip, k], strict=True)
                ]
                weight = 1.0 if apart == 0 else math.exp(-apart / tau)
                value += weight * sum(cosines) / len(cosines)
                weights += weight
            total += value / weights if by_weights else value
        found.append(total / frames if by_frames else total)
    return found


@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("by_frames", [False, True])
@pytest.mark.parametrize("by_weights", [False, True])
@pytest.mark.parametrize("distance", [0, 1, 2, 7])
def test_scores_are_the_papers(cumulative: bool, by_frames: bool, by_weights: bool, distance: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, 5, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = neighbour_weights(5, distance, 1.5, cumulative=cumulative)
    scores, own = alignment_scores(ours, theirs, weights, by_frames=by_frames, by_weights=by_weights)
    expected = independent_scores(ours.numpy(), theirs.numpy(), distance, 1.5, cumulative, by_frames, by_weights)
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    alone = independent_scores(ours.numpy(), theirs.numpy(), 0, 1.5, False, True, False)
    assert own.tolist() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_identical_features_score_one_and_their_neighbours(frames: int) -> None:
    """A frame at either end has one neighbour, the others two."""
    features = torch.ones(1, frames, 3, 2)
    weights = neighbour_weights(frames, 1, 2.0, cumulative=False)
    score, own = alignment_scores(features, features, weights, by_frames=True, by_weights=False)
    assert score.item() == pytest.approx(1 + math.exp(-1 / 2.0) * 2 * (frames - 1) / frames)
    assert own.item() == pytest.approx(1.0)
    normed, _ = alignment_scores(features, features, weights, by_frames=True, by_weights=True)
    assert normed.item() == pytest.approx(1.0)


def test_gradient_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    ours = torch.randn(1, 3, 2, 3, generator=generator).requires_grad_()
    theirs = torch.randn(1, 3, 2, 3, generator=generator)
    weights = neighbour_weights(3, 1, 1.0, cumulative=True)

    def score(values: Tensor) -> Tensor:
        return alignment_scores(values, theirs, weights, by_frames=True, by_weights=False)[0].sum()

    score(ours).backward()
    assert ours.grad is not None
    for place in range(0, ours.numel(), 5):
        moved = torch.zeros(ours.numel()).index_fill_(0, torch.tensor([place]), 1e-2).view_as(ours)
        slope = (score(ours.detach() + moved) - score(ours.detach() - moved)) / 2e-2
        assert ours.grad.view(-1)[place].item() == pytest.approx(slope.item(), abs=2e-3)


def test_trap_80_81_grids_are_matched_in_two_directions() -> None:
    """What varies only from left to right still does so on another, non-square grid."""
    columns = torch.linspace(0, 1, 8).repeat(1, 6, 1)[..., None]  # [1, 6, 8, 1]
    matched = match_grid(columns, 3, 4)
    assert matched.shape == (1, 3, 4, 1)
    assert torch.allclose(matched[0, 0], matched[0, 2], atol=1e-6)
    steps = matched[0, 0, 1:, 0] - matched[0, 0, :-1, 0]
    assert (steps > 0).all()
    rows = match_grid(columns.transpose(1, 2), 4, 3)
    assert torch.allclose(rows[0, :, 0, 0], matched[0, 0, :, 0], atol=1e-6)
    assert torch.equal(match_grid(columns, 6, 8), columns)


def test_a_coarser_grid_sees_every_patch() -> None:
    spots = torch.zeros(1, 8, 8, 1)
    for y in range(8):
        for x in range(8):
            spots[0, y, x, 0] = 1.0
            assert match_grid(spots, 2, 2).sum() > 0.01, (x, y)
            spots[0, y, x, 0] = 0.0


@pytest.mark.parametrize(
    ("step", "settings", "expected"),
    [
        (1, {}, 0.5),
        (5, {"warmup_steps": 10}, 0.25),
        (10, {"warmup_steps": 10}, 0.5),
        (60, {"course": "linear", "decay_steps": 100, "warmup_steps": 10, "end": 0.1}, 0.3),
        (60, {"course": "cosine", "decay_steps": 100, "warmup_steps": 10, "end": 0.1}, 0.3),
        (60, {"course": "polynomial", "power": 2.0, "decay_steps": 100, "warmup_steps": 10}, 0.125),
        (500, {"course": "linear", "decay_steps": 100, "end": 0.1}, 0.1),
        (500, {"course": "constant"}, 0.5),
    ],
)
def test_course_of_a_weight(step: int, settings: dict, expected: float) -> None:
    plain = {"weight": 0.5, "end": 0.0, "course": "constant", "warmup_steps": 0, "decay_steps": 0, "power": 1.0}
    assert course_weight(step, **{**plain, **settings}) == pytest.approx(expected)
