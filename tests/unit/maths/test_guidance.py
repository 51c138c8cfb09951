"""Guidance in closed form."""

from __future__ import annotations

import pytest
import torch

from simpletuner.maths.guidance import guide


def test_a_scale_of_one_is_the_prompted_prediction():
    without, given = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(guide(without, given, 1.0), given)


def test_the_scale_pushes_away_from_the_negative_prompt():
    assert guide(torch.tensor([[1.0]]), torch.tensor([[3.0]]), 3.0).item() == 7.0


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_rescaling_gives_each_sample_the_spread_of_its_prompted_prediction(share):
    given = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [5.0]])
    without = torch.zeros_like(given)
    # With nothing to push away from, guidance multiplies by 4; a full rescale takes that back.
    torch.testing.assert_close(guide(without, given, 4.0, share), given * (share + (1 - share) * 4.0))
