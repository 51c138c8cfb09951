"""Which noise level a draw trains: the configured distribution, keyed by the draw's running number.

The maths of the distributions is in `maths/sigma_laws.py`; here options choose among it. A level
depends on seed and running number only, so batch size, resuming and process count cannot change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from simpletuner.config.sections.flow import FlowSection
from simpletuner.maths.sigma_laws import (
    LogitNormal,
    SigmaLaw,
    Uniform,
    beta_law,
    cut_uniforms,
    spline_law,
    spread_uniforms,
)
from simpletuner.maths.sigmas import logit_normal_sigmas, shift_sigmas
from simpletuner.runtime.random import draw_normal, draw_uniform, stream_generator

SIGMA_STREAM: Final = "sigma"
PLACE_STREAM: Final = "sigma-places"
STRATA: Final = 64
TIME_STEPS: Final = 1000
# Level 0 has no noise and no velocity to learn; a uniform of exactly 0 or 1 would be an infinite normal.
SMALLEST_SHARE: Final = 1e-7


class NoiseLevels:
    """Draws noise levels as the options say."""

    def __init__(self, settings: FlowSection, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self._law = _law_of(settings)
        self._fixed = _fixed_levels(settings)

    def draw(self, numbers: Sequence[int], shift: float) -> Tensor:
        """Noise levels [len(numbers)] float32 on the CPU, moved by `shift` (1 changes nothing)."""
        settings = self._settings
        if self._fixed is not None:
            return self._fixed[self._places_in_list(numbers)]
        independent = settings.flow_sigma_sampling == "independent"
        if independent and isinstance(self._law, LogitNormal) and not settings.refiner_training:
            normals = draw_normal((), self._seed, SIGMA_STREAM, numbers)
            return shift_sigmas(logit_normal_sigmas(normals, self._law.scale), shift)
        shares = self._shares(numbers)
        if settings.refiner_training:
            # The slice is meant in levels as trained; the law knows them before the shift.
            border = float(shift_sigmas(torch.tensor([settings.refiner_training_strength]), 1.0 / shift))
            low, high = (border, 1.0) if settings.refiner_training_invert_schedule else (0.0, border)
            shares = cut_uniforms(shares, self._law, low, high)
        return shift_sigmas(self._law.quantile(shares.clamp(SMALLEST_SHARE, 1 - SMALLEST_SHARE)).float(), shift)

    def _shares(self, numbers: Sequence[int]) -> Tensor:
        """Draws in [0, 1), float64: independent, spread evenly, or every second one mirrored."""
        kind = self._settings.flow_sigma_sampling
        if kind == "antithetic":
            firsts = draw_uniform(self._seed, SIGMA_STREAM, [number - number % 2 for number in numbers]).double()
            mirrored = torch.tensor([number % 2 == 1 for number in numbers])
            return torch.where(mirrored, 1.0 - firsts, firsts)
        uniforms = draw_uniform(self._seed, SIGMA_STREAM, numbers)
        if kind == "independent":
            return uniforms.double()
        places = [_shuffled_places(self._seed, number // STRATA)[number % STRATA] for number in numbers]
        return spread_uniforms(uniforms, numbers, places, STRATA)

    def _places_in_list(self, numbers: Sequence[int]) -> list[int]:
        assert self._fixed is not None
        count = len(self._fixed)
        if self._settings.flow_timesteps_mode == "round-robin":
            return [number % count for number in numbers]
        return (draw_uniform(self._seed, SIGMA_STREAM, numbers) * count).long().clamp_max(count - 1).tolist()


@lru_cache(maxsize=16)
def _shuffled_places(seed: int, run: int) -> list[int]:
    """The order in which run number `run` of 64 draws visits its parts."""
    places: list[int] = torch.randperm(STRATA, generator=stream_generator(seed, PLACE_STREAM, run)).tolist()
    return places


def _law_of(settings: FlowSection) -> SigmaLaw:
    if settings.flow_cubic_schedule_weights:
        return spline_law(settings.flow_cubic_schedule_weights)
    if settings.flow_use_beta_schedule:
        return beta_law(settings.flow_beta_schedule_alpha, settings.flow_beta_schedule_beta)
    if settings.flow_use_uniform_schedule:
        return Uniform()
    return LogitNormal(settings.flow_sigmoid_scale)


def _fixed_levels(settings: FlowSection) -> Tensor | None:
    """The list of `flow_custom_timesteps` as shares: time steps if any value is above 1."""
    if not settings.flow_custom_timesteps:
        return None
    values = torch.tensor(settings.flow_custom_timesteps, dtype=torch.float32)
    return values / TIME_STEPS if bool((values > 1).any()) else values
