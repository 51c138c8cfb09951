"""The term on changes between frames: blind to what stays, closed form, silent where there is nothing to compare."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from simpletuner.maths.noising import clean_estimate
from simpletuner.objectives.auxiliary import Drawn, Seen
from simpletuner.objectives.first_frame import GivenFrames
from simpletuner.objectives.temporal_difference import TemporalDifference

LATENTS, NOISE = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 4, 2, 2)
SIGMAS = torch.tensor([0.3, 0.8])


def seen(error: torch.Tensor, given: GivenFrames | None = None) -> Seen:
    wide = SIGMAS[:, None, None, None, None]
    target = NOISE - LATENTS
    drawn = Drawn(LATENTS, NOISE, (1 - wide) * LATENTS, target, SIGMAS, SIGMAS, given)
    return Seen(None, drawn, target + error, {}, 1)  # type: ignore[arg-type]


def test_a_constant_error_costs_nothing_and_a_flickering_one_does() -> None:
    term = TemporalDifference(0.5)
    assert term.terms(seen(torch.full_like(LATENTS, 3.0)))[0].value.item() == pytest.approx(0.0, abs=1e-10)
    flicker = torch.ones_like(LATENTS)
    flicker[:, :, 1::2] = -1.0
    (found,) = term.terms(seen(flicker))
    assert found.value.item() == pytest.approx(4.0, rel=1e-5)
    assert found.weight == 0.5


def test_it_is_the_error_of_predicted_clean_latents_over_sigma() -> None:
    error = torch.randn(LATENTS.shape, generator=torch.Generator().manual_seed(1))
    place = seen(error)
    clean = clean_estimate(place.drawn.noised, place.prediction, SIGMAS)
    differences = (clean.diff(dim=2) - LATENTS.diff(dim=2)) / SIGMAS[:, None, None, None, None]
    (found,) = TemporalDifference(1.0).terms(place)
    assert found.value.item() == pytest.approx(differences.square().flatten(1).mean(1).mean().item(), rel=1e-4)


def test_a_given_first_frame_is_taken_as_right() -> None:
    wrong_first = torch.zeros_like(LATENTS)
    wrong_first[:, :, 0] = 7.0
    given = GivenFrames(torch.zeros(2), torch.tensor([True, True]))
    assert TemporalDifference(1.0).terms(seen(wrong_first, given))[0].value.item() == 0
    assert TemporalDifference(1.0).terms(seen(wrong_first))[0].value.item() > 0


def test_one_frame_has_no_change() -> None:
    place = seen(torch.zeros_like(LATENTS))
    assert TemporalDifference(1.0).terms(replace(place, prediction=place.prediction[:, :, :1])) == ()
