"""What an objective hands to the training step: named loss terms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

SIGMA_BANDS = 4


@dataclass(frozen=True)
class LossTerm:
    """One named part of the loss of one batch.

    Attributes:
        name: Name under which it is reported.
        value: Scalar, mean over the batch's samples; carries the gradient.
        weight: Factor in the total loss.
        per_sample: [B] float32, detached, on the computing device; None if the term has no such part.
        sigmas: [B] float32 noise levels, on the CPU so that reading them never waits; None likewise.
        is_reported_only: Whether it is a figure to be told, no part of the loss; `value` then carries no gradient.
    """

    name: str
    value: Tensor
    weight: float = 1.0
    per_sample: Tensor | None = None
    sigmas: Tensor | None = None
    is_reported_only: bool = False


def band_means(sigmas: Iterable[float], losses: Iterable[float], bands: int = SIGMA_BANDS) -> dict[str, float]:
    """Mean loss per band of noise levels, so that a loss curve can be read.

    The loss of velocity matching depends strongly on the noise level; its mean over a few samples
    mostly shows which levels were drawn. Bands have equal width over [0, 1]; 1.0 is in the last.

    Returns:
        "loss/sigma_0.00-0.25" and so on, only bands that were drawn.
    """
    found: dict[int, list[float]] = {}
    for sigma, loss in zip(sigmas, losses, strict=True):
        found.setdefault(min(int(sigma * bands), bands - 1), []).append(loss)
    return {
        f"loss/sigma_{band / bands:.2f}-{(band + 1) / bands:.2f}": sum(values) / len(values)
        for band, values in sorted(found.items())
    }
