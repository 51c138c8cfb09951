"""The learning rate of every step, and a sentence that says what it will do."""

from __future__ import annotations

import math

from simpletuner.config.catalogs.schedules import SCHEDULES
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.maths.schedules import RatePlan, warmup_is_half_period

# Courses that read a warm-up of the whole run as half a period, and what they do then.
HALF_PERIODS = {"cosine": "one decay", "sine": "half a wave"}


def batch_factor(schedule: ScheduleSection) -> float:
    """What `lr_scale` or `lr_scale_sqrt` multiplies the learning rate by; 1 without them."""
    clips = schedule.train_batch_size * schedule.gradient_accumulation_steps
    if schedule.lr_scale:
        return float(clips)
    return math.sqrt(clips) if schedule.lr_scale_sqrt else 1.0


class LearningRate:
    """Step -> rate, a pure function of the configuration; nothing of it needs saving."""

    def __init__(self, name: str, plan: RatePlan) -> None:
        """Look the course up.

        Raises:
            UserError: If the name is unknown.
        """
        self.name = name
        self.plan = plan
        self._row = SCHEDULES[name]
        self._course = SCHEDULES.load(name)

    @classmethod
    def from_section(cls, schedule: ScheduleSection, total_steps: int) -> LearningRate:
        """The course the configuration asks for, over `total_steps` optimizer steps."""
        return cls(
            schedule.lr_scheduler,
            RatePlan(
                base=schedule.learning_rate * batch_factor(schedule),
                total_steps=max(total_steps, 1),
                warmup_steps=schedule.lr_warmup_steps,
                end=schedule.lr_end,
                power=schedule.lr_power,
                cycles=schedule.lr_num_cycles,
            ),
        )

    def __call__(self, steps_done: int) -> float:
        """Rate of the step that follows `steps_done` finished ones."""
        return float(self._course(steps_done, self.plan))

    def describe(self) -> str:
        """One sentence for the story before step 1: which reading applies, first and last rate."""
        plan = self.plan
        first, last = self(0), self(plan.total_steps - 1)
        rates = f"{first:.3g} at the first step, {last:.3g} at the last of {plan.total_steps}"
        if self.name in HALF_PERIODS and warmup_is_half_period(plan) and plan.warmup_steps:
            wave = HALF_PERIODS[self.name]
            return f"{self.name}: {wave} over the run without warm-up (lr_warmup_steps covers the whole run), {rates}"
        if self._row.warms_up and plan.warmup_steps:
            return f"{self.name} after {plan.warmup_steps} warm-up steps, {rates}"
        return f"{self.name}, {rates}"

    def warning(self) -> str:
        """A sentence when the warm-up has an effect nobody can want; empty otherwise."""
        plan = self.plan
        if plan.warmup_steps and not self._row.warms_up:
            return (
                f"lr_warmup_steps {plan.warmup_steps} has no effect with lr_scheduler '{self.name}'; "
                "use 'constant_with_warmup'."
            )
        if self.name not in HALF_PERIODS and plan.warmup_steps >= plan.total_steps:
            return (
                f"lr_warmup_steps {plan.warmup_steps} is not below the {plan.total_steps} steps of the run, so the "
                f"learning rate never reaches {plan.base:g}; lower lr_warmup_steps."
            )
        return ""
