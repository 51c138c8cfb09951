"""Noise levels: medians under shifts, the clamp of the automatic shift, edges."""

from __future__ import annotations

import math

import pytest
import torch

from simpletuner.maths.sigmas import auto_shift, logit_normal_sigmas, shift_exponent, shift_sigmas

DRAWS = torch.randn(100_000, generator=torch.Generator().manual_seed(0))


def test_default_logit_normal_has_median_one_half() -> None:
    assert logit_normal_sigmas(DRAWS).median().item() == pytest.approx(0.5, abs=0.01)


def test_scale_widens_the_bell() -> None:
    assert logit_normal_sigmas(DRAWS, 2.0).std() > 1.3 * logit_normal_sigmas(DRAWS).std()


@pytest.mark.parametrize("shift", [0.25, 0.5, 1.0, 3.0, 7.59])
def test_shift_moves_the_median_to_s_over_one_plus_s(shift: float) -> None:
    moved = shift_sigmas(logit_normal_sigmas(DRAWS), shift)
    assert moved.median().item() == pytest.approx(shift / (1 + shift), abs=0.01)


def test_shift_adds_its_logarithm_to_the_logit() -> None:
    sigmas = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    assert torch.allclose(shift_sigmas(sigmas, 3.0).logit(), sigmas.logit() + math.log(3.0))


def test_shift_one_changes_nothing_and_the_ends_stay() -> None:
    assert torch.equal(shift_sigmas(DRAWS.sigmoid(), 1.0), DRAWS.sigmoid())
    ends = torch.tensor([0.0, 1.0])
    assert torch.equal(shift_sigmas(ends, 5.0), ends)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan])
def test_shift_must_be_above_zero(shift: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        shift_sigmas(torch.tensor([0.5]), shift)


@pytest.mark.parametrize(
    ("tokens", "exponent"),
    [(1024, 0.95), (4096, 2.05), (4032, 2.0271), (2560, 1.5), (6144, 2.05), (336, 0.95), (1, 0.95)],
)
def test_exponent_of_the_automatic_shift(tokens: int, exponent: float) -> None:
    assert shift_exponent(tokens) == pytest.approx(exponent, abs=5e-5)
    assert auto_shift(tokens) == pytest.approx(math.exp(exponent), rel=1e-4)
