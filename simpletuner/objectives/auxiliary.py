"""The door for every objective beside flow matching: what it is given, what it may change, what it returns.

An objective is one file here and one row in `config/catalogs/objectives.py`. It may change what the model is shown
(`prepare`), add loss terms (`terms`), read hidden states of blocks, and train modules of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from simpletuner.config.sections.guidance import AuxiliarySection, CrepaSection, RolloutSection
from simpletuner.data.batch import Batch
from simpletuner.models.family import ModelFamily, Source
from simpletuner.objectives.first_frame import GivenFrames
from simpletuner.objectives.terms import LossTerm


@dataclass(frozen=True)
class Drawn:
    """A batch as the model is shown it, and what it shall answer.

    Attributes:
        latents: [B, C, F, H, W] clean latents.
        noise: The same shape, float32: the noise that is predicted.
        noised: The same shape, float32: what the model is shown.
        target: The same shape, float32: the velocity it shall predict.
        sigmas: [B] float32 noise levels, on the CPU.
        device_sigmas: The same on the computing device.
        given: First frames that are given; None where all clips are text-to-video.
        first_sigmas: [B] their noise levels on the computing device; None likewise.
        weigh: Prediction -> weight of each of its values, or None for equal weights.
        cell_sigmas: [B, F, H, W] noise levels of each latent cell on the computing device, where `noised` has more than
            one per clip (a first frame aside); they then hold instead of the others. None likewise.
    """

    latents: Tensor
    noise: Tensor
    noised: Tensor
    target: Tensor
    sigmas: Tensor
    device_sigmas: Tensor
    given: GivenFrames | None = None
    first_sigmas: Tensor | None = None
    weigh: Callable[[Tensor], Tensor] | None = None
    cell_sigmas: Tensor | None = None

    def without_given(self, values: Tensor) -> Tensor:
        """`values` [B, C, F, H, W] with 0 in the first frames that are given clean: there is nothing to predict."""
        if self.given is None or not self.given.clean.any():
            return values
        clean = on_device(self.given.clean, values)[:, None, None, None, None]
        first = values[:, :, :1].masked_fill(clean, 0.0)
        return torch.cat([first, values[:, :, 1:]], dim=2)


def on_device(values: Tensor, like: Tensor) -> Tensor:
    """Copy CPU values beside `like` without making the host wait for the device."""
    if like.device.type == "cuda":
        values = values.pin_memory()
    return values.to(like.device, non_blocking=True)


@dataclass(frozen=True)
class Seen:
    """What an objective may look at once the model has answered.

    Attributes:
        batch: The batch, on the computing device.
        drawn: What the model was shown.
        prediction: [B, C, F, H, W] float32 velocity, carries the gradient.
        hidden: Number of a block -> its output [B, S, D], carries the gradient; the blocks that were asked for.
        step: Number of the optimizer step, from 1.
    """

    batch: Batch
    drawn: Drawn
    prediction: Tensor
    hidden: Mapping[int, Tensor]
    step: int


# Asks the model for the velocity of a batch: noised latents, noise levels [B], levels of the first frames or None.
Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Auxiliary(Protocol):
    """One further objective; a value of its own, not a subclass."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks whose output it reads."""

    @property
    def companion(self) -> nn.Module | None:
        """What it trains and remembers beside the model: parameters and buffers, saved with every checkpoint and
        never in an adapter file."""

    def is_active(self, step: int) -> bool:
        """Whether it has anything to do at this step; where not, the step costs what it costs without it."""

    def prepare(self, predict: Predict, batch: Batch, drawn: Drawn, step: int) -> Drawn:
        """What the model is shown instead of `drawn`."""

    def terms(self, seen: Seen) -> Sequence[LossTerm]:
        """Its loss terms, and figures to report."""


@dataclass(frozen=True)
class Surroundings:
    """What an objective is built from.

    Attributes:
        family, source: How the model is called.
        transformer: The model, adapter attached.
        crepa, rollout, auxiliary: The sections of the options.
        seed: Seed of the run.
        total_steps: Its length.
        device: Where the model is computed.
        feature_width: Width of the teacher's features that batches carry; 0 where they carry none.
        teacher: Makes the teacher's features of a batch where batches carry none: latents [B, C, F, H, W] ->
            [B, F, H, W, E].
        other_levels: Noise levels [B] of a batch by the law of the run, on the CPU, drawn apart from those trained on.
        measured: The adapter without dropout for the length of a block, see `Adapter.measured`.
    """

    family: ModelFamily
    source: Source
    transformer: nn.Module
    crepa: CrepaSection
    rollout: RolloutSection
    auxiliary: AuxiliarySection
    seed: int
    total_steps: int
    device: torch.device
    feature_width: int = 0
    teacher: Callable[[Tensor], Tensor] | None = None
    other_levels: Callable[[Batch], Tensor] | None = None
    measured: Callable[[], AbstractContextManager[None]] = nullcontext
