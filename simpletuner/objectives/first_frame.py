"""Image-to-video training: which samples are given their first latent frame, and how clean it is.

Drawn per sample from streams of their own, so that a chance of 0 leaves every other draw as it is.
This module must not know the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from simpletuner.config.sections.flow import FlowSection
from simpletuner.data.batch import Batch
from simpletuner.runtime.random import draw_uniform

CHOICE_STREAM: Final = "first-frame"
PART_STREAM: Final = "first-frame-part"


@dataclass(frozen=True)
class GivenFrames:
    """First latent frames of a batch of which at least one is given.

    Attributes:
        sigmas: [B] float32 on the CPU, noise level of each first frame: at most that of its sample, equal to it
            where the frame is not given.
        clean: [B] bool on the CPU, True where the frame is given clean and so is not part of the loss.
    """

    sigmas: Tensor
    clean: Tensor


class FirstFrames:
    """Draws given first frames as the options say."""

    def __init__(self, settings: FlowSection, seed: int) -> None:
        self._settings = settings
        self._seed = seed

    def draw(self, batch: Batch, sigmas: Tensor) -> GivenFrames | None:
        """The first frames that are given in `batch`; None, which means plain text-to-video, when there are none.

        A clip of one latent frame is never given its first: nothing would be left to learn.

        Args:
            batch: The batch; `is_i2v` says which samples may be chosen.
            sigmas: [B] float32 noise levels of its samples, on the CPU.
        """
        settings, numbers = self._settings, batch.sample_numbers
        if not settings.ltx_i2v_prob or batch.latents.shape[2] < 2 or not any(batch.is_i2v):
            return None
        chosen = torch.tensor(batch.is_i2v) & (draw_uniform(self._seed, CHOICE_STREAM, numbers) < settings.ltx_i2v_prob)
        if not chosen.any():
            return None
        if settings.ltx_protect_first_frame:
            return GivenFrames(torch.where(chosen, torch.zeros_like(sigmas), sigmas), chosen)
        parts = settings.ltx_partial_noise_fraction * draw_uniform(self._seed, PART_STREAM, numbers)
        return GivenFrames(torch.where(chosen, sigmas * (1.0 - parts), sigmas), torch.zeros_like(chosen))
