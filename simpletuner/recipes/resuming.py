"""Going on from a checkpoint: how long the run is now, and what of the old one carries over."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from simpletuner.config.run_config import RunConfig
from simpletuner.data.batches import BatchStream
from simpletuner.data.epochs import total_steps
from simpletuner.events.types import Event, Noticed
from simpletuner.training.checkpoint import read_checkpoint, restore
from simpletuner.training.state import TrainState

_BATCHES = ("capacity", "accumulation", "processes")


def length_of_run(config: RunConfig, batches: BatchStream, checkpoint: Path | None) -> int:
    """Optimizer steps of the whole run.

    Where epochs decide and the batches or the number of epochs have changed since the checkpoint, it is the steps done
    and those that the epochs left take now; else what it was, so that a resumed run is as long as the undisturbed one.

    Raises:
        UserError: If the checkpoint is broken.
    """
    schedule = config.schedule
    steps = total_steps(schedule, batches.epochs.steps_of)
    epochs_decide = schedule.num_train_epochs and (not schedule.max_train_steps or schedule.strict_epoch_limit)
    if checkpoint is None or not epochs_decide:
        return steps
    document = read_checkpoint(checkpoint)
    then, now, facts = document["batches"], batches.state_dict(), document["facts"]
    is_as_before = facts.get("num_train_epochs") == schedule.num_train_epochs and all(
        then.get(key) == now[key] for key in _BATCHES
    )
    if is_as_before and not schedule.max_train_steps:
        return int(facts["max_train_steps"])
    by_epochs = int(document["step"]) + _steps_left(batches, then, schedule.num_train_epochs)
    return min(by_epochs, schedule.max_train_steps) if schedule.max_train_steps else by_epochs


def _steps_left(batches: BatchStream, position: dict[str, int], epochs: int) -> int:
    """Steps from a saved position to the end of the run's last epoch, with the batches of today."""
    epoch = position.get("epoch", 1)
    if epoch > epochs:
        return 0
    begun, *rest = islice(batches.epochs.walk(epoch, position.get("first_step", 0)), epochs - epoch + 1)
    drawn = Fraction(position.get("drawn", 0), begun.size.draws)
    return math.ceil((1 - drawn) * begun.size.steps) + sum(start.size.steps for start in rest)


def go_on(state: TrainState, checkpoint: Path, facts: dict[str, Any], emit: Callable[[Event], None]) -> None:
    """Put `state` where the checkpoint left it, and tell what has changed and what carries over.

    Raises:
        UserError: If the checkpoint is broken or belongs to another run.
    """
    for sentence in restore(state, checkpoint, facts):
        emit(Noticed("note", sentence))
    then = read_checkpoint(checkpoint)["facts"]
    if any(then.get(name) != facts.get(name) for name in ("train_batch_size", "gradient_accumulation_steps")):
        emit(Noticed("note", _carried_over(state, then, facts)))


def _carried_over(state: TrainState, then: dict[str, Any], now: dict[str, Any]) -> str:
    sizes = [facts.get("train_batch_size", 1) * facts.get("gradient_accumulation_steps", 1) for facts in (then, now)]
    return (
        f"a step has up to {sizes[1]} clips now ({sizes[0]} before). Carried over: weights, optimizer, averages, the "
        "order of the clips, and the noise and caption of each draw. Changed: which clips share a step, how many steps "
        f"make an epoch, and the learning rate goes on by steps: {max(state.total_steps - state.step, 0)} are left"
    )
