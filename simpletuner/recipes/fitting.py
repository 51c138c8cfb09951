"""Makes a run fit the memory it may take: asks `memory_plan.py` with what was found on this machine, and says so.

Training, caches and evaluation go through here, so that all of them see the same configuration. The result depends
on the configuration, the clips and the machine alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from simpletuner.config.run_config import RunConfig
from simpletuner.config.values import show
from simpletuner.events.types import Event, Noticed, StoryTold
from simpletuner.events.wording import told_size
from simpletuner.recipes.memory_plan import MemoryPlan, budget_card, is_wanted, plan_memory
from simpletuner.recipes.plan import RunPlan
from simpletuner.recipes.run_length import plan_data
from simpletuner.recipes.survey import Survey
from simpletuner.runtime.host import Host
from simpletuner.runtime.machine import Machine, find_machine
from simpletuner.training.checkpoint import read_checkpoint


def fit_to_memory(config: RunConfig, plan: RunPlan, host: Host, emit: Callable[[Event], None]) -> RunConfig:
    """The configuration with what `memory_budget` chooses, each choice told with its reason; else the same one.

    Raises:
        UserError: If the checkpoint to go on from is broken.
    """
    if not is_wanted(config):
        return config
    machine = machine_of(host)
    survey = Survey(plan.found, plan.samples, plan.storages, plan.evaluation)
    pinned = read_checkpoint(plan.checkpoint)["facts"] if plan.checkpoint is not None else None
    found = plan_memory(config, plan_data(config, survey), machine, budget_card(config, machine), pinned)
    emit(StoryTold("Memory", told_lines(found)))
    if not found.fits:
        memory = found.memory
        emit(
            Noticed(
                "warning",
                f"{memory.peak_phase} needs about {told_size(memory.peak_bytes)} of {told_size(memory.limit_bytes)} "
                "with everything that may be chosen: it may not fit",
            )
        )
    return found.config


def told_lines(plan: MemoryPlan) -> tuple[tuple[str, str], ...]:
    """The choices as lines of the story before step 1."""
    chosen = [(choice.option, f"{show(choice.value)}: {choice.why}") for choice in plan.choices]
    peak = f"{told_size(plan.memory.peak_bytes)} by {plan.memory.peak_phase}, of {told_size(plan.memory.limit_bytes)}"
    return (*chosen, ("peak", peak), ("clips at once", f"room for {plan.most_clips} of the largest size"))


def machine_of(host: Host) -> Machine:
    """What forecasts know of the machine, with the device that this run really computes on."""
    machine = find_machine()
    if host.device.type == "cpu":
        return replace(machine, card_name="", card_bytes=0.0)
    if not machine.card_name:
        return replace(machine, card_name=host.device_name, card_bytes=float(host.memory_bytes))
    return machine
