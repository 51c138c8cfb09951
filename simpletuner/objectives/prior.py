"""Prior data: on clips of these sets the adapter shall change nothing, so the base model's own answer is the target.

What an adapter learns of its subject spreads to everything like it. Beside the clips of the subject, clips of the class
it belongs to are trained towards what the model says without the adapter, at the same noise: a subject's dog stays a
dog. Source: prior preservation of Ruiz et al. 2022 (DreamBooth, arXiv 2208.12242), with the answer of the base model in
place of the class's own clips, so that their quality does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from simpletuner.data.batch import Batch
from simpletuner.objectives.auxiliary import Drawn, Predict, Seen, on_device
from simpletuner.objectives.terms import LossTerm


class PriorPreservation:
    """Fulfils `auxiliary.Auxiliary`; the last of all, since it answers what the others show the model."""

    blocks: tuple[int, ...] = ()
    companion: nn.Module | None = None

    def __init__(self, plain: Callable[[], AbstractContextManager[None]]) -> None:
        """
        Args:
            plain: While open, the model computes without its adapter.
        """
        self._plain = plain

    def is_active(self, step: int) -> bool:
        return True

    def prepare(self, predict: Predict, batch: Batch, drawn: Drawn, step: int) -> Drawn:
        """The base model's velocity as the target of clips of prior sets; a pass over the model if there are any."""
        if not any(batch.is_prior):
            return drawn
        with self._plain(), torch.no_grad():
            answer = predict(drawn.noised, drawn.device_sigmas, drawn.first_sigmas)
        return replace(drawn, target=torch.where(_rows(batch, answer), answer, drawn.target))

    def terms(self, seen: Seen) -> Sequence[LossTerm]:
        """`regularisation_loss`, told only: the part of the squared error that clips of prior sets make."""
        batch = seen.batch
        if not any(batch.is_prior):
            return ()
        error = seen.drawn.without_given(seen.prediction.detach() - seen.drawn.target)
        part = torch.where(_rows(batch, error), error, 0.0).square().flatten(1).mean(1).mean()
        return (LossTerm("regularisation_loss", part, is_reported_only=True),)


def _rows(batch: Batch, like: Tensor) -> Tensor:
    """[B, 1, 1, 1, 1]: which clips are of prior sets."""
    return on_device(torch.tensor(batch.is_prior), like)[:, None, None, None, None]
