"""Scheduled sampling: some samples are shown what the model itself made of them.

At inference each step starts from what the step before has made, in training from the true path. Here a chosen
sample begins some levels of a real inference schedule above its own, the model walks down to it without gradients,
and is trained on where it arrives. What is drawn depends on the seed and the sample's running number only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from simpletuner.config.sections.guidance import RolloutSection
from simpletuner.data.batch import Batch
from simpletuner.maths.noising import noise_latents
from simpletuner.maths.rollout import compensation_weights, draw_offsets, drift_loss, ramped_chance, source_levels
from simpletuner.maths.solvers import SOLVERS, Memory, Solver
from simpletuner.objectives.auxiliary import Drawn, Predict, Seen, Surroundings, on_device
from simpletuner.objectives.terms import LossTerm
from simpletuner.runtime.modes import evaluating
from simpletuner.runtime.random import draw_uniform

CHOICE_STREAM: Final = "rollout-choice"
OFFSET_STREAM: Final = "rollout-offset"

# (latent frames, height, width) -> levels of the inference schedule for such a clip, falling.
Grid = Callable[[tuple[int, int, int]], Tensor]


class Rollout:
    """Fulfils `auxiliary.Auxiliary`."""

    blocks: tuple[int, ...] = ()
    companion: nn.Module | None = None

    def __init__(
        self,
        settings: RolloutSection,
        transformer: nn.Module,
        grid: Grid,
        seed: int,
        measured: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._settings = settings
        self._measured = measured
        self._transformer = transformer
        self._grid = grid
        self._seed = seed
        self._solver: Solver = SOLVERS[settings.scheduled_sampling_sampler, settings.solver_order]
        self._rolled: Tensor | None = None  # [B] bool, which samples of the present batch were rolled out
        self._forwards = 0

    def is_active(self, step: int) -> bool:
        return self.chance(step) > 0

    def chance(self, step: int) -> float:
        """Chance that a sample is rolled out at this step."""
        settings = self._settings
        return ramped_chance(
            step,
            fixed=settings.scheduled_sampling_probability,
            start=settings.scheduled_sampling_prob_start,
            end=settings.scheduled_sampling_prob_end,
            ramp_steps=settings.scheduled_sampling_ramp_steps,
            start_step=settings.scheduled_sampling_start_step,
            shape=settings.scheduled_sampling_ramp_shape,
        )

    def prepare(self, predict: Predict, batch: Batch, drawn: Drawn, step: int) -> Drawn:
        """Where the chosen samples arrive; with an offset of 0 everywhere it is `drawn` itself."""
        self._rolled, self._forwards = None, 0
        paths = source_levels(drawn.sigmas, self._offsets(batch, step), self._grid(_grid_of(drawn.latents)))
        rolled = torch.tensor([len(path) > 1 for path in paths])
        if not rolled.any():
            return drawn
        clean = None
        with torch.no_grad(), evaluating(self._transformer), self._measured():
            arrived = self._walk(predict, drawn, paths)
            if self._settings.reflexflow:
                clean = predict(drawn.noised, drawn.device_sigmas, drawn.first_sigmas)
                self._forwards += 1
        self._rolled = on_device(rolled, drawn.latents)
        chosen = _wide(self._rolled)
        noised = torch.where(chosen, arrived, drawn.noised)
        target = drawn.target
        if self._settings.scheduled_sampling_target == "reached":
            back = (noised - drawn.latents.float()) / drawn.device_sigmas[:, None, None, None, None]
            target = torch.where(chosen, back, target)
        return replace(drawn, noised=noised, target=target, weigh=None if clean is None else self._weigher(clean))

    def terms(self, seen: Seen) -> Sequence[LossTerm]:
        """The anti-drift term of what was rolled out, and what the roll-out has cost."""
        forwards = torch.full((), float(self._forwards), device=seen.prediction.device)
        told = LossTerm("rollout/forwards", forwards, is_reported_only=True)
        if self._rolled is None or not self._settings.reflexflow:
            return (told,)
        drift = drift_loss(
            seen.drawn.without_given(seen.prediction),
            seen.drawn.without_given(seen.drawn.noised),
            seen.drawn.without_given(seen.drawn.latents),
        )
        value = torch.where(self._rolled, drift, torch.zeros_like(drift)).mean()
        settings = self._settings
        weight = settings.scheduled_sampling_reflexflow_beta1 * settings.scheduled_sampling_reflexflow_beta2
        return (LossTerm("rollout/drift", value, weight), told)

    def _offsets(self, batch: Batch, step: int) -> Tensor:
        settings, numbers = self._settings, batch.sample_numbers
        chosen = draw_uniform(self._seed, CHOICE_STREAM, numbers) < self.chance(step)
        offsets = draw_offsets(
            draw_uniform(self._seed, OFFSET_STREAM, numbers),
            settings.scheduled_sampling_max_step_offset,
            settings.scheduled_sampling_strategy,
        )
        return torch.where(chosen, offsets, torch.zeros_like(offsets))

    def _walk(self, predict: Predict, drawn: Drawn, paths: Sequence[Tensor]) -> Tensor:
        """All samples side by side; whoever has the shorter path waits at its beginning."""
        longest = max(len(path) for path in paths)
        levels = torch.stack([torch.cat([path[:1].expand(longest - len(path)), path]) for path in paths])
        given = None if drawn.given is None else drawn.given.sigmas < drawn.sigmas
        state = noise_latents(drawn.latents, drawn.noise, on_device(levels[:, 0], drawn.latents))
        state = _with_given(state, drawn, given)
        memory: Memory | None = None
        for now, following in itertools.pairwise(levels.unbind(1)):
            here, there = on_device(now, state), on_device(following, state)
            first = None
            if given is not None and drawn.given is not None:
                first = on_device(torch.where(given, drawn.given.sigmas, now), state)
            velocity = predict(state, here, first)
            self._forwards += 1
            moved, kept = self._solver(state, here, there, velocity, memory)
            moves = on_device(following < now, state)
            state = _with_given(torch.where(_wide(moves), moved, state), drawn, given)
            memory = kept
        return state

    def _weigher(self, clean: Tensor) -> Callable[[Tensor], Tensor]:
        settings, rolled = self._settings, self._rolled

        def weigh(prediction: Tensor) -> Tensor:
            weights = compensation_weights(clean, prediction, settings.scheduled_sampling_reflexflow_alpha)
            weights = weights * settings.scheduled_sampling_reflexflow_beta2
            return torch.where(_wide(rolled), weights, torch.ones_like(weights)) if rolled is not None else weights

        return weigh


def _grid_of(latents: Tensor) -> tuple[int, int, int]:
    frames, height, width = latents.shape[2:]
    return frames, height, width


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None, None]


def _with_given(state: Tensor, drawn: Drawn, given: Tensor | None) -> Tensor:
    """The state with the given first frames as they were given: at inference they stay what they are, too."""
    if given is None or not given.any():
        return state
    first = torch.where(_wide(on_device(given, state)), drawn.noised[:, :, :1], state[:, :, :1])
    return torch.cat([first, state[:, :, 1:]], dim=2)


def build_rollout(surroundings: Surroundings) -> Rollout:
    """Scheduled sampling on the inference schedule of the model's release."""
    family, source, settings = surroundings.family, surroundings.source, surroundings.rollout

    @cache
    def grid(size: tuple[int, int, int]) -> Tensor:
        return family.noise_levels(source, settings.scheduled_sampling_grid_steps, size)

    return Rollout(settings, surroundings.transformer, grid, surroundings.seed, surroundings.measured)
