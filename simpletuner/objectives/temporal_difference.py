"""Temporal difference: the predicted clean latents change from frame to frame as the clip's do.

Flow matching weighs every cell alone, so an error that alternates between frames costs as little as one that stays.
This term looks at the differences of neighbouring latent frames. The clean latents are predicted as x - sigma v; the
error of their differences is divided by sigma, so that, like the velocity's, it does not vanish at small noise.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from simpletuner.data.batch import Batch
from simpletuner.objectives.auxiliary import Drawn, Predict, Seen, Surroundings
from simpletuner.objectives.terms import LossTerm


class TemporalDifference:
    """Fulfils `auxiliary.Auxiliary`."""

    blocks: tuple[int, ...] = ()
    companion: nn.Module | None = None

    def __init__(self, weight: float) -> None:
        self._weight = weight

    def is_active(self, step: int) -> bool:
        return True

    def prepare(self, predict: Predict, batch: Batch, drawn: Drawn, step: int) -> Drawn:
        return drawn

    def terms(self, seen: Seen) -> Sequence[LossTerm]:
        """Mean squared error of the differences over frames; nothing for clips of one latent frame.

        With clean latents z' = x - sigma v' and z = x - sigma v both differences share x, so
        (z'_f+1 - z'_f) - (z_f+1 - z_f) = -sigma ((v' - v)_f+1 - (v' - v)_f), and sigma drops out of the quotient.
        """
        if seen.prediction.shape[2] < 2:
            return ()
        error = seen.drawn.without_given(seen.prediction - seen.drawn.target)
        per_sample = error.diff(dim=2).square().flatten(1).mean(1)
        return (LossTerm("temporal_difference", per_sample.mean(), self._weight),)


def build_temporal_difference(surroundings: Surroundings) -> TemporalDifference:
    """The term with the weight of the options."""
    return TemporalDifference(surroundings.auxiliary.temporal_difference_weight)
