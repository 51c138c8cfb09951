"""Flow matching: noise a batch, ask the model for the velocity, measure how wrong it is.

All randomness is drawn per sample from named streams keyed by the sample's running number, so batch
size, accumulation, resuming and validation in between cannot change what a sample sees. The model is
known only through `models/family.py`. The walk goes on in `training/step.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from simpletuner.config.sections.flow import FlowSection
from simpletuner.data.batch import Batch
from simpletuner.maths.losses import huber, huber_thresholds, smooth_l1, squared_error
from simpletuner.maths.noising import noise_latents, velocity_target
from simpletuner.maths.sigmas import auto_shift
from simpletuner.models.family import ModelFamily, Source
from simpletuner.objectives.auxiliary import Drawn, on_device
from simpletuner.objectives.first_frame import FirstFrames
from simpletuner.objectives.noise_levels import NoiseLevels
from simpletuner.objectives.terms import LossTerm
from simpletuner.runtime.random import draw_normal

NOISE_STREAM: Final = "noise"
PERTURBATION_STREAM: Final = "input-perturbation"

# Losses that grow like the distance where it is large, with a threshold per sample.
_ROUNDED: Final[dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {"huber": huber, "smooth_l1": smooth_l1}


class FlowMatching:
    """Velocity flow matching on straight paths."""

    def __init__(self, family: ModelFamily, source: Source, settings: FlowSection, seed: int) -> None:
        """Fix what stays the same for the whole run."""
        self._family = family
        self._source = source
        self._settings = settings
        self._seed = seed
        self._levels = NoiseLevels(settings, seed)
        self._first_frames = FirstFrames(settings, seed)

    def __call__(self, transformer: nn.Module, batch: Batch, step: int) -> tuple[LossTerm, ...]:
        """Loss of one batch that `Batch.to` has put on the computing device, for optimizer step `step` (from 1).

        Latents are noised in float32; the family casts them when it calls the transformer. The loss
        is float32: mean over each sample's cells that are not given clean, then over samples.
        """
        drawn = self.draw(batch, step)
        return self.judge(
            drawn, self.predict(transformer, batch, drawn.noised, drawn.device_sigmas, drawn.first_sigmas)
        )

    def draw(self, batch: Batch, step: int) -> Drawn:
        """What the model is shown of a batch, and what it shall answer."""
        latents = batch.latents
        sigmas = self.draw_sigmas(batch)
        noise = batch.noise
        if noise is None:
            noise = on_device(draw_noise(self._seed, latents.shape[1:], batch.sample_numbers), latents)
        device_sigmas = on_device(sigmas, latents)
        given = self._first_frames.draw(batch, sigmas)
        first_sigmas = None if given is None else on_device(given.sigmas, latents)
        shown = self._perturbed(noise, batch, step)
        noised = noise_latents(latents, shown, device_sigmas)
        if first_sigmas is not None:
            noised[:, :, 0] = noise_latents(latents[:, :, 0], shown[:, :, 0], first_sigmas)
        return Drawn(
            latents, noise, noised, velocity_target(latents, noise), sigmas, device_sigmas, given, first_sigmas
        )

    def predict(
        self,
        transformer: nn.Module,
        batch: Batch,
        noised: Tensor,
        sigmas: Tensor,
        first_sigmas: Tensor | None,
        cell_sigmas: Tensor | None = None,
    ) -> Tensor:
        """Velocity [B, C, F, H, W] float32 of a batch's clips at these noise levels."""
        return self._family.predict(
            transformer,
            self._source,
            noised,
            sigmas,
            batch.prompt_embeds,
            batch.prompt_mask,
            batch.frame_rates,
            first_frame_sigmas=first_sigmas,
            cell_sigmas=cell_sigmas,
        )

    def judge(self, drawn: Drawn, prediction: Tensor) -> tuple[LossTerm, ...]:
        """How wrong an answer is."""
        per_sample = self._loss_per_sample(prediction, drawn)
        return (LossTerm("loss", per_sample.mean(), per_sample=per_sample.detach(), sigmas=drawn.sigmas),)

    def draw_sigmas(self, batch: Batch) -> Tensor:
        """Noise levels [B] of the batch's samples, float32 on the CPU, shifted as configured."""
        return self._levels.draw(batch.sample_numbers, self.shift_of(batch.latents[0, 0].numel()))

    def shift_of(self, num_tokens: int) -> float:
        """Shift applied to clips of `num_tokens` latent cells; the automatic one wins over the fixed one."""
        if self._settings.flow_schedule_auto_shift:
            return auto_shift(num_tokens)
        return self._settings.flow_schedule_shift or 1.0

    def _loss_per_sample(self, prediction: Tensor, drawn: Drawn) -> Tensor:
        """Loss of each sample [B]: the mean over the cells that it has to predict, all but a clean first frame."""
        target, given = drawn.target, drawn.given
        weights = None if drawn.weigh is None else drawn.weigh(prediction)
        whole = self._distance(prediction, target, drawn.sigmas, weights)
        if given is None or not given.clean.any():
            return whole
        later = None if weights is None else weights[:, :, 1:]
        rest = self._distance(prediction[:, :, 1:], target[:, :, 1:], drawn.sigmas, later)
        return torch.where(on_device(given.clean, rest), rest, whole)

    def _distance(self, prediction: Tensor, target: Tensor, sigmas: Tensor, weights: Tensor | None) -> Tensor:
        """Loss of each sample [B] by the configured kind; weights apply to the squared error alone."""
        if self._settings.loss_type == "l2":
            return squared_error(prediction, target, weights)
        thresholds = huber_thresholds(sigmas, self._settings.huber_c, self._settings.huber_schedule)
        return _ROUNDED[self._settings.loss_type](prediction, target, on_device(thresholds, target))

    def _perturbed(self, noise: Tensor, batch: Batch, step: int) -> Tensor:
        """The noise that the model is shown: with `input_perturbation` more than it has to predict.

        Source: Ning et al. 2023 (arXiv 2301.11706), input perturbation.
        """
        share, fading = self._settings.input_perturbation, self._settings.input_perturbation_steps
        if fading:
            share *= max(0.0, 1.0 - (step - 1) / fading)
        if not share:
            return noise
        extra = draw_normal(noise.shape[1:], self._seed, PERTURBATION_STREAM, batch.sample_numbers)
        return torch.add(noise, on_device(extra, noise), alpha=share)


def draw_noise(seed: int, shape: Sequence[int], numbers: Sequence[int]) -> Tensor:
    """The noise [len(numbers), *shape] float32 on the CPU that draws with these running numbers are mixed with."""
    return draw_normal(shape, seed, NOISE_STREAM, numbers)


def loss_at(
    family: ModelFamily,
    source: Source,
    transformer: nn.Module,
    batch: Batch,
    sigmas: Tensor,
    noise: Tensor,
    *,
    gives_first: bool = False,
) -> Tensor:
    """Squared distance of the predicted velocity, [B] float32, at noise levels and noise that are given.

    Nothing is drawn and no option changes it: no noise is added beside `noise`. So it can be compared over the steps
    of a run and between runs; with l2 it is what training lowers.

    Args:
        batch: On the computing device.
        sigmas: [B] float32 noise levels in (0, 1), on the computing device.
        noise: [B, C, F, H, W] or what broadcasts to it, float32, on the computing device.
        gives_first: Whether the first latent frame is given clean, as in image-to-video; the mean is over the other
            frames then, of which there must be one.
    """
    latents = batch.latents.float()
    noised = noise_latents(latents, noise.expand_as(latents), sigmas)
    target = velocity_target(latents, noise.expand_as(latents))
    first_sigmas = None
    if gives_first:
        first_sigmas = torch.zeros_like(sigmas)
        noised[:, :, 0] = latents[:, :, 0]
    prediction = family.predict(
        transformer,
        source,
        noised,
        sigmas,
        batch.prompt_embeds,
        batch.prompt_mask,
        batch.frame_rates,
        first_frame_sigmas=first_sigmas,
    )
    return squared_error(prediction[:, :, 1:], target[:, :, 1:]) if gives_first else squared_error(prediction, target)
