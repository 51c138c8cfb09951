"""Everything the next step depends on, in one place; what `training/checkpoint.py` saves.

The learning rate and all random draws are functions of the step and of sample numbers, so the state
is small: weights, optimizer, position in the batches, step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.optimizer_settings import optimizer_arguments
from simpletuner.config.sections.average import AverageSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.core.errors import UserError
from simpletuner.data.batch import Batch
from simpletuner.training.average import WeightAverage, in_place
from simpletuner.training.build import Trainable
from simpletuner.training.companions import Companions
from simpletuner.training.gradient_sums import GradientSums
from simpletuner.training.learning_rate import LearningRate
from simpletuner.training.movement import Movement
from simpletuner.training.optim.schedule_free import averaged_weights
from simpletuner.training.optimizer import build_optimizer


class BatchSource(Protocol):
    """An endless supply of batches with a position that can be saved."""

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: dict[str, int]) -> tuple[str, ...]: ...


class StateSettings(Protocol):
    """The sections of the configuration that shape optimizer and schedule."""

    @property
    def optimizer(self) -> OptimizerSection: ...
    @property
    def schedule(self) -> ScheduleSection: ...
    @property
    def average(self) -> AverageSection: ...
    @property
    def precision(self) -> PrecisionSection: ...
    @property
    def memory(self) -> MemorySection: ...


@dataclass
class TrainState:
    """A run between two steps.

    Attributes:
        trainable: The model and its trained parameters.
        optimizer: Moments and step counts.
        learning_rate: Steps done -> rate of the next step.
        batches: Where the next batch comes from.
        settings: Name and numbers of the optimizer, clipping included.
        seed: Seed of the run.
        total_steps: Steps of the whole run.
        step: Optimizer steps done.
        broken: Set when loss or gradients stopped being numbers and ended the run; such a state is never saved.
        average: Running average of the trained weights, None without `use_ema`.
        companions: What objectives train beside the model; None where they train nothing.
        sums: Where gradients add up in float32; None where they can do so in the parameters.
        keeps_gradients: Whether the memory of gradients is kept and zeroed between steps, instead of dropped.
        skipped_steps: Numbers of the steps that were passed over because they were broken.
        rollbacks: How often the run went back to a checkpoint.
        movement: Looks now and then whether the weights move; None where nobody wants to know.
        sums_in_float32: Whether gradients of several passes may add up beside narrow parameters.
    """

    trainable: Trainable
    optimizer: Optimizer
    learning_rate: LearningRate
    batches: BatchSource
    settings: OptimizerSection
    seed: int
    total_steps: int
    step: int = 0
    broken: bool = False
    average: WeightAverage | None = None
    companions: Companions | None = None
    sums: GradientSums | None = None
    keeps_gradients: bool = False
    skipped_steps: list[int] = field(default_factory=list)
    rollbacks: int = 0
    movement: Movement | None = None
    sums_in_float32: bool = True

    @classmethod
    def begin(
        cls,
        trainable: Trainable,
        batches: BatchSource,
        config: StateSettings,
        total_steps: int,
        companions: Companions | None = None,
    ) -> TrainState:
        """The state before the first of `total_steps` optimizer steps.

        Raises:
            UserError: If optimizer or schedule are unknown or do not fit the parameters.
        """
        adds_up = config.schedule.gradient_accumulation_steps > 1 or trainable.passes.tokens is not None
        state = cls(
            trainable=trainable,
            optimizer=build_optimizer(trainable, config),
            learning_rate=LearningRate.from_section(config.schedule, total_steps),
            batches=batches,
            settings=config.optimizer,
            seed=config.schedule.seed,
            total_steps=total_steps,
            average=_build_average(trainable, config.average),
            companions=companions,
            keeps_gradients=not config.memory.set_grads_to_none,
            movement=Movement(trainable.parameters.values()),
            sums_in_float32=config.precision.gradient_precision != "unmodified",
        )
        if adds_up:
            state.add_up_gradients()
        return state

    def add_up_gradients(self) -> None:
        """Let gradients of several passes add up in float32 from here on, where the parameters are narrower."""
        parameters = self.trainable.parameters.values()
        is_narrow = any(parameter.dtype.itemsize < torch.float32.itemsize for parameter in parameters)
        if self.sums is None and is_narrow and self.sums_in_float32:
            self.sums = GradientSums(parameters)

    def wearing(self, weights: Literal["base", "adapter", "ema"]) -> AbstractContextManager[None]:
        """Put the named weights into the model while the block is open: without adapter, as trained, averaged.

        Raises:
            UserError: If the base is asked for after the first step of a run that trains the base itself.
        """
        if weights == "base":
            if self.step and not self.trainable.adapter.keeps_base:
                raise UserError(
                    f"the base model is gone: its own weights were trained for {self.step} steps",
                    "With model_type full the base can be shown only before the first step",
                    "Keep the videos of the first start, or set disable_benchmark to true",
                )
            return self.trainable.plain_weights()
        return self._wearing_adapter(self.trainable.adapter.shown(), averaged=weights == "ema")

    def measuring(self, weights: Literal["adapter", "ema"]) -> AbstractContextManager[None]:
        """As `wearing`, at the strength at which the adapter is trained, whatever validation shows."""
        return self._wearing_adapter(self.trainable.adapter.measured(), averaged=weights == "ema")

    @contextmanager
    def _wearing_adapter(self, strength: AbstractContextManager[None], *, averaged: bool) -> Iterator[None]:
        with strength, ExitStack() as worn:
            if averaged and self.average is not None:
                worn.enter_context(self.average.in_place())
            else:
                worn.enter_context(self.sampled())
            yield

    def sampled_weights(self) -> list[tuple[Tensor, Tensor]] | None:
        """What is generated with and exported, beside each parameter; None where that is what is trained.

        Optimizers without a schedule sample an average of their own.
        """
        if not OPTIMIZERS[self.settings.optimizer].averages:
            return None
        return averaged_weights(self.optimizer)

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """While open, the parameters are what is generated with and exported."""
        with in_place(self.sampled_weights() or []):
            yield

    def facts(self) -> Mapping[str, Any]:
        """What a checkpoint must share with this run, and what may change but is worth telling."""
        plan = self.learning_rate.plan
        return {
            **self.trainable.facts,
            "optimizer": self.settings.optimizer,
            "seed": self.seed,
            "learning_rate": plan.base,
            "lr_scheduler": self.learning_rate.name,
            "lr_warmup_steps": plan.warmup_steps,
            "lr_end": plan.end,
            "lr_power": plan.power,
            "lr_num_cycles": plan.cycles,
            **({} if self.average is None else self.average.facts),
            "max_train_steps": self.total_steps,
            **{f"optimizer {key}": value for key, value in optimizer_arguments(self.settings).items()},
            "optimizer_release_gradients": self.settings.optimizer_release_gradients,
            "max_grad_norm": self.settings.max_grad_norm,
            "grad_clip_method": self.settings.grad_clip_method,
        }


def _build_average(trainable: Trainable, settings: AverageSection) -> WeightAverage | None:
    return WeightAverage(trainable.parameters, settings, trainable.device) if settings.use_ema else None
