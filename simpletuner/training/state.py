"""Everything the next step depends on, in one place; what `training/checkpoint.py` saves.

The learning rate and all random draws are functions of the step and of sample numbers, so the state
is small: weights, optimizer, position in the batches, step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch.optim import Optimizer

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.data.batch import Batch
from simpletuner.training.build import Trainable
from simpletuner.training.learning_rate import LearningRate


class BatchSource(Protocol):
    """An endless supply of batches with a position that can be saved."""

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: dict[str, int]) -> None: ...


class StateSettings(Protocol):
    """The sections of the configuration that shape optimizer and schedule."""

    @property
    def optimizer(self) -> OptimizerSection: ...
    @property
    def schedule(self) -> ScheduleSection: ...


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
        broken: Set when loss or gradients stopped being numbers; such a state is never saved.
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

    @classmethod
    def begin(
        cls,
        trainable: Trainable,
        batches: BatchSource,
        config: StateSettings,
        total_steps: int,
    ) -> TrainState:
        """The state before the first of `total_steps` optimizer steps.

        Raises:
            UserError: If optimizer or schedule are unknown or do not fit the parameters.
        """
        return cls(
            trainable=trainable,
            optimizer=build_optimizer(trainable, config),
            learning_rate=LearningRate.from_section(config.schedule, total_steps),
            batches=batches,
            settings=config.optimizer,
            seed=config.schedule.seed,
            total_steps=total_steps,
        )

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
            "max_train_steps": self.total_steps,
            "adam_weight_decay": self.settings.adam_weight_decay,
            "max_grad_norm": self.settings.max_grad_norm,
            "grad_clip_method": self.settings.grad_clip_method,
        }


def build_optimizer(trainable: Trainable, config: StateSettings) -> Optimizer:
    """The optimizer named in the settings over all trained parameters.

    Raises:
        UserError: If the name is unknown, or the parameters have another number format than it needs.
    """
    settings = config.optimizer
    row = OPTIMIZERS[settings.optimizer]
    beta1, beta2 = row.betas
    arguments: dict[str, Any] = {
        "lr": config.schedule.learning_rate,
        "betas": (
            beta1 if settings.optimizer_beta1 is None else settings.optimizer_beta1,
            beta2 if settings.optimizer_beta2 is None else settings.optimizer_beta2,
        ),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.adam_weight_decay,
        **row.extra,
    }
    if row.takes_seed:
        arguments["seed"] = config.schedule.seed
    optimizer: Optimizer = OPTIMIZERS.load(settings.optimizer)(list(trainable.parameters.values()), **arguments)
    return optimizer
