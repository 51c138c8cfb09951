"""Which data sets take part in an epoch, and how many steps a run of epochs has: counts only, without torch.

A data set joins with the first epoch that begins after its start was reached, and leaves with the first that begins
after its end was. Within an epoch nothing changes, so that each is whole: every sample of its data sets is drawn
exactly as often as they say. Next stop: `batches.py`, which draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.core.errors import UserError
from simpletuner.data.batch_rules import ALWAYS, BatchRules, EpochSize, measure_epoch
from simpletuner.data.sample import Sample


def total_steps(schedule: ScheduleSection, steps_of: Callable[[int], int]) -> int:
    """Optimizer steps of a whole run; 0 where epochs decide and the length of one is not known.

    Args:
        schedule: Says how many steps or epochs are wanted.
        steps_of: Epochs -> their steps (`Epochs.steps_of`); 0 where that is not known.
    """
    if schedule.max_train_steps and not schedule.strict_epoch_limit:
        return schedule.max_train_steps
    by_epochs = steps_of(schedule.num_train_epochs)
    if schedule.max_train_steps and by_epochs:
        return min(schedule.max_train_steps, by_epochs)
    return schedule.max_train_steps or by_epochs


@dataclass(frozen=True)
class EpochStart:
    """One epoch before it begins.

    Attributes:
        epoch: Its number, from 1.
        step: Optimizer steps that are done when it begins.
        datasets: Ids of the data sets that take part.
        size: Its draws, batches and steps.
    """

    epoch: int
    step: int
    datasets: frozenset[str]
    size: EpochSize


@dataclass(frozen=True)
class Epochs:
    """The epochs of a run.

    Attributes:
        samples: What is trained, of all data sets.
        rules: How draws become batches, and when each data set takes part.
    """

    samples: Sequence[Sample]
    rules: BatchRules

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """Ids of all data sets, in the order of their first samples."""
        return tuple(dict.fromkeys(sample.dataset for sample in self.samples))

    @cached_property
    def is_steady(self) -> bool:
        """Whether all data sets take part from the first step to the last."""
        return all(self.rules.of(name).span == ALWAYS for name in self.datasets)

    def at(self, epoch: int, step: int) -> EpochStart:
        """The epoch that begins when `step` steps are done.

        Raises:
            UserError: If no data set takes part in it.
        """
        taking = frozenset(name for name in self.datasets if self.rules.of(name).span.covers(epoch, step))
        if not taking:
            raise UserError(
                f"no data set takes part in epoch {epoch}, which begins after step {step}",
                "start_epoch and start_step of all data sets lie ahead of it, end_epoch or end_step behind it; they "
                "count where an epoch begins",
                "End the run earlier (max_train_steps, num_train_epochs), or let one data set take part in it",
            )
        return EpochStart(epoch, step, taking, self._size_of(taking))

    def walk(self, epoch: int = 1, step: int = 0) -> Iterator[EpochStart]:
        """The epochs from one on, without end.

        Raises:
            UserError: See `at`.
        """
        while True:
            start = self.at(epoch, step)
            yield start
            epoch, step = epoch + 1, step + start.size.steps

    def steps_of(self, epochs: int) -> int:
        """Optimizer steps of the first `epochs` epochs.

        Raises:
            UserError: If no data set takes part in one of them.
        """
        if epochs <= 0:
            return 0
        if self.is_steady:
            return epochs * self.at(1, 0).size.steps
        last = next(start for start in self.walk() if start.epoch == epochs)
        return last.step + last.size.steps

    def passed(self, steps: int) -> float:
        """Epochs that `steps` optimizer steps are, the last perhaps in part.

        Raises:
            UserError: If no data set takes part in one of them.
        """
        if self.is_steady:
            return steps / self.at(1, 0).size.steps
        last = next(start for start in self.walk() if steps <= start.step + start.size.steps)
        return last.epoch - 1 + (steps - last.step) / last.size.steps

    def changes(self, steps: int) -> Iterator[tuple[EpochStart, frozenset[str], frozenset[str]]]:
        """Epochs that begin within `steps` steps with other data sets than the one before; who joins, who leaves."""
        if self.is_steady:
            return
        before: frozenset[str] = frozenset()
        for start in self.walk():
            if start.step >= steps:
                return
            if before and start.datasets != before:
                yield start, start.datasets - before, before - start.datasets
            before = start.datasets

    @cached_property
    def _sizes(self) -> dict[frozenset[str], EpochSize]:
        return {}

    def _size_of(self, datasets: frozenset[str]) -> EpochSize:
        if datasets not in self._sizes:
            taking = [sample for sample in self.samples if sample.dataset in datasets]
            self._sizes[datasets] = measure_epoch(taking, self.rules)
        return self._sizes[datasets]
