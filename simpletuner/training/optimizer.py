"""The optimizer of a run, from its name: over all parameters, or for each by itself, or on the CPU."""

from __future__ import annotations

from typing import Any, Protocol

from torch.optim import Optimizer

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.optimizer_settings import optimizer_arguments
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.core.errors import UserError
from simpletuner.runtime.seeds import stream_seed
from simpletuner.training.build import Trainable
from simpletuner.training.optim.offloaded import OffloadedOptimizer
from simpletuner.training.optim.released import ReleasedOptimizer


class OptimizerSettings(Protocol):
    """The sections of the configuration that shape the optimizer."""

    @property
    def optimizer(self) -> OptimizerSection: ...
    @property
    def schedule(self) -> ScheduleSection: ...


def build_optimizer(trainable: Trainable, config: OptimizerSettings) -> Optimizer:
    """The optimizer named in the settings over all trained parameters.

    Raises:
        UserError: If the name is unknown, a package is missing, or the parameters have another number format than it
            needs.
    """
    settings = config.optimizer
    row = OPTIMIZERS[settings.optimizer]
    arguments = {"lr": config.schedule.learning_rate, **optimizer_arguments(settings)}
    try:
        load = OPTIMIZERS.load(settings.optimizer)
    except ImportError as error:
        raise UserError(
            f"optimizer {settings.optimizer} needs a package that is not installed ({error.name})",
            f"It comes with the extra '{row.extra}'",
            f"pip install 'simpletuner[{row.extra}]', or choose adamw_bf16",
        ) from error

    def build(groups: list[dict[str, Any]], number: int) -> Optimizer:
        seed = config.schedule.seed
        # Optimizers of single parameters must not round alike.
        seeded = {"seed": stream_seed(seed, "parameter", number) if number else seed} if row.takes_seed else {}
        optimizer: Optimizer = load(groups, **arguments, **seeded)
        return optimizer

    groups = _parameter_groups(trainable, decays="weight_decay" in arguments)
    if settings.optimizer_release_gradients:
        return ReleasedOptimizer(groups, build, settings.clip_limit, row.group_state)
    if settings.optimizer_cpu_offload_method == "cpu" and trainable.device.type != "cpu":
        return OffloadedOptimizer(groups, build)
    return build(groups, 0)


def parameter_names(trainable: Trainable, optimizer: Optimizer) -> list[str]:
    """Names of the optimizer's parameters in its order, group after group."""
    names = {parameter: name for name, parameter in trainable.parameters.items()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _parameter_groups(trainable: Trainable, *, decays: bool) -> list[dict[str, Any]]:
    """One group in the order of the parameters, or two where some are spared from weight decay."""
    spared = trainable.adapter.undecayed
    if not (decays and spared):
        return [{"params": list(trainable.parameters.values())}]
    decayed = [parameter for name, parameter in trainable.parameters.items() if name not in spared]
    others = [parameter for name, parameter in trainable.parameters.items() if name in spared]
    return [group for group in ({"params": decayed}, {"params": others, "weight_decay": 0.0}) if group["params"]]
