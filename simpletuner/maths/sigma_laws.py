"""Distributions of noise levels, each by its quantile: uniform draws in, noise levels out.

A law that is known by its quantile can be cut to a slice and can be drawn from evenly spread
uniforms, both exactly. Nothing here draws; the walk goes on in `objectives/flow_matching.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

TABLE_CELLS = 1 << 14  # a table's steps are then far below what 1000 time steps can tell apart


class SigmaLaw(Protocol):
    """A distribution on [0, 1]."""

    def quantile(self, uniforms: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The noise levels below which these shares of all draws lie."""

    def share_below(self, sigma: float) -> float:
        """The share of draws at or below `sigma`: the inverse of `quantile`."""


@dataclass(frozen=True)
class LogitNormal:
    """sigmoid(scale * n) of a standard normal n.

    Source: Esser et al. 2024 (arXiv 2403.03206), section 3.1, with m = 0 and s = `scale`.
    """

    scale: float = 1.0

    def quantile(self, uniforms: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return torch.sigmoid(self.scale * torch.special.ndtri(uniforms.double())).float()

    def share_below(self, sigma: float) -> float:
        if not 0 < sigma < 1:
            return float(sigma >= 1)
        return 0.5 * (1 + math.erf(math.log(sigma / (1 - sigma)) / self.scale / math.sqrt(2)))


@dataclass(frozen=True)
class Uniform:
    """Every noise level is as likely."""

    def quantile(self, uniforms: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return uniforms

    def share_below(self, sigma: float) -> float:
        return min(max(sigma, 0.0), 1.0)


class Tabulated:
    """A law given by its density on equal cells of [0, 1], constant within a cell."""

    def __init__(self, density: Float[Tensor, " cells"]) -> None:
        """
        Args:
            density: Values of at least 0, at least one above; they need not sum to 1.

        Raises:
            ValueError: If the density is negative, not finite or zero everywhere.
        """
        total = density.double().sum()
        if not bool(torch.isfinite(density).all()) or bool((density < 0).any()) or float(total) <= 0:
            raise ValueError("a density must be finite, nowhere negative and somewhere above 0")
        self._cumulated = torch.cat([torch.zeros(1, dtype=torch.float64), (density.double() / total).cumsum(0)])
        self._cumulated[-1] = 1.0

    def quantile(self, uniforms: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        cells = len(self._cumulated) - 1
        shares = uniforms.double()
        cell = (torch.searchsorted(self._cumulated, shares, right=True) - 1).clamp(0, cells - 1)
        low, high = self._cumulated[cell], self._cumulated[cell + 1]
        inside = torch.where(high > low, (shares - low) / (high - low).clamp_min(1e-300), torch.zeros_like(shares))
        return ((cell + inside) / cells).float()

    def share_below(self, sigma: float) -> float:
        place = min(max(sigma, 0.0), 1.0) * (len(self._cumulated) - 1)
        cell = min(int(place), len(self._cumulated) - 2)
        low, high = float(self._cumulated[cell]), float(self._cumulated[cell + 1])
        return low + (high - low) * (place - cell)


def beta_law(alpha: float, beta: float) -> SigmaLaw:
    """The beta distribution: density proportional to s^(alpha-1) * (1-s)^(beta-1).

    Args:
        alpha, beta: Shapes, above 0; both 1 is uniform, both 2 a bell around 0.5.
    """
    middles = (torch.arange(TABLE_CELLS, dtype=torch.float64) + 0.5) / TABLE_CELLS
    logarithm = (alpha - 1) * middles.log() + (beta - 1) * torch.log1p(-middles)
    return Tabulated((logarithm - logarithm.max()).exp())


def spline_law(weights: Sequence[float]) -> SigmaLaw:
    """A density through equally spaced weights over [0, 1], joined by a cubic curve, nowhere below 0.

    Args:
        weights: At least 2 values of at least 0, the first at no noise, the last at pure noise.

    Raises:
        ValueError: If there are fewer than 2 weights or none is above 0.

    Source: Catmull and Rom 1974 (the cubic through the points whose slope at each is that of its neighbours).
    """
    if len(weights) < 2:
        raise ValueError("a density needs at least 2 weights")
    knots = torch.tensor(weights, dtype=torch.float64)
    padded = torch.cat([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    place = (torch.arange(TABLE_CELLS, dtype=torch.float64) + 0.5) / TABLE_CELLS * (len(weights) - 1)
    piece = place.long().clamp_max(len(weights) - 2)
    t = place - piece
    before, start, end, after = (padded[piece + offset] for offset in range(4))
    cubic = (
        start
        + 0.5 * t * (end - before)
        + t**2 * (before - 2.5 * start + 2 * end - 0.5 * after)
        + t**3 * (1.5 * (start - end) + 0.5 * (after - before))
    )
    return Tabulated(cubic.clamp_min(0))


def cut_uniforms(uniforms: Float[Tensor, " batch"], law: SigmaLaw, low: float, high: float) -> Tensor:
    """Uniform draws with which `law` gives only noise levels in [low, high], in its own proportions there."""
    first, last = law.share_below(low), law.share_below(high)
    return first + (last - first) * uniforms.double()


def spread_uniforms(
    uniforms: Float[Tensor, " batch"], numbers: Sequence[int], places: Sequence[int], strata: int
) -> Tensor:
    """Move uniform draws so that each run of `strata` consecutive draws covers [0, 1) evenly.

    Args:
        uniforms: Independent draws in [0, 1), one per number.
        numbers: Running number of each draw.
        places: Place of each number in the shuffled order of its run, in [0, strata).
        strata: Length of a run.

    Returns:
        (place + u) / strata: each run has exactly one draw in each of `strata` equal parts.
    """
    if len(numbers) != len(uniforms) or len(places) != len(uniforms):
        raise ValueError("every draw needs its number and its place")
    return (torch.tensor(places, dtype=torch.float64) + uniforms.double()) / strata
