"""Flow matching: noise a batch, ask the model for the velocity, measure how wrong it is.

All randomness is drawn per sample from named streams keyed by the sample's running number, so batch
size, accumulation, resuming and validation in between cannot change what a sample sees. The model is
known only through `models/family.py`. The walk goes on in `training/step.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor, nn

from simpletuner.config.sections.flow import FlowSection
from simpletuner.core.errors import UserError
from simpletuner.data.batch import Batch
from simpletuner.maths.losses import squared_error
from simpletuner.maths.noising import noise_latents, velocity_target
from simpletuner.maths.sigmas import auto_shift, logit_normal_sigmas, shift_sigmas, uniform_sigmas
from simpletuner.models.family import ModelFamily, Source
from simpletuner.objectives.terms import LossTerm
from simpletuner.runtime.random import draw_normal, draw_uniform

NOISE_STREAM: Final = "noise"
SIGMA_STREAM: Final = "sigma"

_LOSSES: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {"l2": squared_error}


class FlowMatching:
    """Velocity flow matching on straight paths."""

    def __init__(self, family: ModelFamily, source: Source, settings: FlowSection, seed: int) -> None:
        """Fix what stays the same for the whole run.

        Raises:
            UserError: If the loss type is not built.
        """
        if settings.loss_type not in _LOSSES:
            raise UserError(
                f"loss_type '{settings.loss_type}' is not built",
                f"Available: {', '.join(_LOSSES)}",
                "Set loss_type to one of these, or leave it out",
            )
        self._family = family
        self._source = source
        self._settings = settings
        self._seed = seed
        self._loss = _LOSSES[settings.loss_type]

    def __call__(self, transformer: nn.Module, batch: Batch) -> tuple[LossTerm, ...]:
        """Loss of one batch that `Batch.to` has put on the computing device.

        Latents are noised in float32; the family casts them when it calls the transformer. The loss
        is float32: mean over each sample's cells, then over samples.
        """
        latents = batch.latents
        sigmas = self.draw_sigmas(batch)
        noise = _to_device(draw_normal(latents.shape[1:], self._seed, NOISE_STREAM, batch.sample_numbers), latents)
        device_sigmas = _to_device(sigmas, latents)
        prediction = self._family.predict(
            transformer,
            self._source,
            noise_latents(latents, noise, device_sigmas),
            device_sigmas,
            batch.prompt_embeds,
            batch.prompt_mask,
            batch.frame_rates,
        )
        per_sample = self._loss(prediction, velocity_target(latents, noise))
        return (LossTerm("loss", per_sample.mean(), per_sample=per_sample.detach(), sigmas=sigmas),)

    def draw_sigmas(self, batch: Batch) -> Tensor:
        """Noise levels [B] of the batch's samples, float32 on the CPU, shifted as configured."""
        if self._settings.flow_use_uniform_schedule:
            sigmas = uniform_sigmas(draw_uniform(self._seed, SIGMA_STREAM, batch.sample_numbers))
        else:
            normals = draw_normal((), self._seed, SIGMA_STREAM, batch.sample_numbers)
            sigmas = logit_normal_sigmas(normals, self._settings.flow_sigmoid_scale)
        return shift_sigmas(sigmas, self.shift_of(batch.latents[0, 0].numel()))

    def shift_of(self, num_tokens: int) -> float:
        """Shift applied to clips of `num_tokens` latent cells; the automatic one wins over the fixed one."""
        if self._settings.flow_schedule_auto_shift:
            return auto_shift(num_tokens)
        return self._settings.flow_schedule_shift or 1.0


def _to_device(values: Tensor, like: Tensor) -> Tensor:
    """Copy CPU values beside `like` without making the host wait for the device."""
    if like.device.type == "cuda":
        values = values.pin_memory()
    return values.to(like.device, non_blocking=True)
