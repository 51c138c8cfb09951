"""Self-flow: the model teaches itself by seeing more of the clip than it shows itself.

Some tokens of each clip get another noise level than the rest. The model, shown that mixture, shall find in an early
block what a later block of its own finds when the whole clip has the lower of both levels. The paper's teacher is a
running average of the weights; here it is the model as it stands, without gradients and without dropout, because an
average is not kept on the device.

Source: Chefer et al. 2026 (arXiv 2603.06507), dual-timestep scheduling.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from simpletuner.data.batch import Batch
from simpletuner.maths.noising import noise_latents
from simpletuner.objectives.auxiliary import Drawn, Predict, Surroundings, on_device
from simpletuner.objectives.hidden_states import captured
from simpletuner.runtime.modes import evaluating
from simpletuner.runtime.random import draw_normal

MASK_STREAM: Final = "self-flow-mask"


class SelfFlow:
    """What CREPA's feature source `self_flow` shows the model, and what it learns from."""

    def __init__(self, surroundings: Surroundings) -> None:
        """
        Raises:
            ValueError: If the surroundings draw no second noise level, or no teaching block is set.
        """
        teacher = surroundings.crepa.crepa_teacher_block_index
        if surroundings.other_levels is None or teacher is None:
            raise ValueError("self-flow needs a second law of noise levels and a block that teaches")
        self._teacher = teacher
        self._other_levels = surroundings.other_levels
        self._transformer = surroundings.transformer
        self._block_list = surroundings.family.block_list
        self._measured = surroundings.measured
        self._seed = surroundings.seed
        self._threshold = torch.special.ndtri(torch.tensor(surroundings.crepa.crepa_self_flow_mask_ratio))
        self._features: Tensor | None = None

    @property
    def features(self) -> Tensor:
        """[B, S, D] output of the teaching block for the batch that `prepare` saw last; carries no gradient."""
        assert self._features is not None
        return self._features

    def prepare(self, predict: Predict, batch: Batch, drawn: Drawn) -> Drawn:
        """The mixture of two noise levels; asks the teacher on the way. A given first frame stays as it is."""
        latents = drawn.latents
        other = on_device(self._other_levels(batch), latents)
        mask = draw_normal(latents.shape[2:], self._seed, MASK_STREAM, batch.sample_numbers) < self._threshold
        masked = on_device(mask, latents)
        if drawn.first_sigmas is not None:
            masked[:, 0] = False
        cells = torch.where(masked, _wide(other), _wide(drawn.device_sigmas)).clone()
        if drawn.first_sigmas is not None:
            cells[:, 0] = _wide(drawn.first_sigmas)[:, 0]
        # Only what is masked is noised anew, so that a share of 0 is exactly the plain step.
        noised = torch.where(masked[:, None], noise_latents(latents, drawn.noise, other), drawn.noised)
        self._features = self._ask(predict, drawn, torch.minimum(drawn.device_sigmas, other))
        return replace(drawn, noised=noised, cell_sigmas=cells)

    def _ask(self, predict: Predict, drawn: Drawn, levels: Tensor) -> Tensor:
        """Output [B, S, D] of the teaching block for the clip at `levels` [B]."""
        noised = noise_latents(drawn.latents, drawn.noise, levels)
        if drawn.first_sigmas is not None:
            noised[:, :, 0] = drawn.noised[:, :, 0]
        blocks = list(self._transformer.get_submodule(self._block_list))  # type: ignore[call-overload]
        with (
            torch.no_grad(),
            evaluating(self._transformer),
            self._measured(),
            captured(blocks, (self._teacher,)) as found,
        ):
            predict(noised, levels, drawn.first_sigmas)
        return found[self._teacher]


def _wide(levels: Tensor) -> Tensor:
    """Levels [B] as [B, 1, 1, 1], beside cells [B, F, H, W]."""
    return levels[:, None, None, None]
