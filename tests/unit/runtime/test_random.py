"""Draws depend on (seed, stream, number) and on nothing else."""

from __future__ import annotations

import torch

from simpletuner.runtime.random import draw_normal, draw_uniform
from simpletuner.runtime.seeds import stream_seed


def test_the_seed_of_a_draw_is_pinned_across_machines_and_releases() -> None:
    # A change here changes every run that is resumed with a new release.
    assert stream_seed(42, "noise", 0) == 8191287690251064523
    assert stream_seed(42, "noise", 1) != stream_seed(42, "noise", 0) != stream_seed(43, "noise", 0)


def test_a_row_is_the_same_in_any_batch() -> None:
    together = draw_normal((3, 5), 7, "noise", [4, 5, 6])
    alone = draw_normal((3, 5), 7, "noise", [5])
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])


def test_other_draws_in_between_change_nothing() -> None:
    before = draw_normal((4,), 7, "noise", [0])
    torch.manual_seed(0)
    torch.randn(100)
    assert torch.equal(before, draw_normal((4,), 7, "noise", [0]))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    draw_normal((4,), 7, "noise", range(8))
    draw_uniform(7, "sigma", range(8))
    assert torch.equal(torch.rand(2), expected)


def test_draws_have_the_distribution_they_claim() -> None:
    normal = draw_normal((64,), 1, "noise", range(400))
    assert abs(normal.mean().item()) < 0.02
    assert abs(normal.std().item() - 1) < 0.02
    uniform = draw_uniform(1, "sigma", range(4000))
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean().item() - 0.5) < 0.02
    # Neighbouring numbers must not be correlated although each has its own generator.
    assert abs(torch.corrcoef(torch.stack([uniform[:-1], uniform[1:]]))[0, 1].item()) < 0.05
