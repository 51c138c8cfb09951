"""Before step 1: the largest batch is tried for real, and what it took is told beside the forecast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from simpletuner.config.catalogs.cards import CardRow
from simpletuner.config.run_config import RunConfig
from simpletuner.data.batches import BatchStream
from simpletuner.events.types import Event, MemoryMeasured, Noticed
from simpletuner.events.wording import told_size
from simpletuner.models.cost import cost_source
from simpletuner.recipes.fitting import machine_of
from simpletuner.recipes.forecast import find_trained_part
from simpletuner.recipes.forecast_task import Task
from simpletuner.recipes.memory_forecast import Memory, forecast_memory
from simpletuner.recipes.memory_plan import AUTO, budget_card
from simpletuner.recipes.plan import RunPlan
from simpletuner.recipes.residence import KEPT
from simpletuner.recipes.run_length import plan_data, plan_length
from simpletuner.recipes.streaming_plan import plan_streaming
from simpletuner.recipes.survey import Survey
from simpletuner.runtime.host import Host
from simpletuner.training.build import Trainable
from simpletuner.training.companions import Companions
from simpletuner.training.out_of_memory import DoesNotFitError
from simpletuner.training.probe import probe_step
from simpletuner.training.step import Objective


def probe_largest(
    config: RunConfig,
    plan: RunPlan,
    host: Host,
    trainable: Trainable,
    objective: Objective,
    companions: Companions | None,
    batches: BatchStream,
    total_steps: int,
    emit: Callable[[Event], None],
) -> None:
    """Take two steps on the largest batch and undo them, unless `memory_probe` is off.

    Raises:
        UserError: If it does not fit, or one of its clips cannot be read.
    """
    if not config.memory.memory_probe:
        return
    batch = batches.read_largest()
    forecast = forecast_of(config, plan, host)
    budget = config.memory.memory_budget
    # A budget of one's own is held to; a whole card says itself when it is full.
    limit = forecast.limit_bytes - context_of(forecast) if budget and budget != AUTO else 0.0
    try:
        found = probe_step(
            trainable, objective, companions, batch, config, total_steps,
            limit_bytes=limit, tell=lambda text: emit(Noticed("warning", text)),
        )  # fmt: skip
    except DoesNotFitError as error:
        problem, needed = error.problems[0], sum(forecast.phases.get("training", {}).values())
        told = f"forecast were {told_size(needed)} of the {told_size(host.memory_bytes)} of {host.device_name}"
        raise DoesNotFitError(f"{problem.what}; {told}", problem.rule, problem.fix) from error
    if found.turned:
        turned: dict[str, int | None] = {"max_tokens_per_pass": found.tokens_per_pass}
        if trainable.dial is not None:
            turned["gradient_checkpointing_blocks"] = found.recomputed
        memory = config.memory.model_copy(update=turned)
        forecast = forecast_of(replace(config, memory=memory), plan, host)
    clips = len(batch.sample_numbers)
    what = f"{clips} clip{'s' if clips > 1 else ''} of {batch.bucket}"
    tell_measured("training", what, found.peak_bytes, forecast, host, emit)


def tell_measured(
    phase: str, what: str, measured_bytes: int, forecast: Memory, host: Host, emit: Callable[[Event], None]
) -> None:
    """Tell one phase's measured peak of tensors beside its forecast."""
    parts = forecast.phases.get(phase, {})
    expected = sum(size for part, size in parts.items() if part not in ("context", KEPT))
    emit(MemoryMeasured(phase, what, measured_bytes, int(expected), host.memory_bytes))


def context_of(forecast: Memory) -> float:
    """What the driver and the libraries take for themselves, by the forecast."""
    return max((parts.get("context", 0.0) for parts in forecast.phases.values()), default=0.0)


def forecast_of(config: RunConfig, plan: RunPlan, host: Host) -> Memory:
    """The memory forecast of a run that has been planned, on the device that it is on."""
    return forecast_memory(*task_of(config, plan, host))


def task_of(config: RunConfig, plan: RunPlan, host: Host) -> tuple[Task, CardRow]:
    """A run that has been planned as forecasts see it, and the device that it is on."""
    machine = machine_of(host)
    cost = cost_source(str(config.model.model_family)).find(config.model)
    trained = find_trained_part(config, cost)
    data = plan_data(config, Survey(plan.found, plan.samples, plan.storages, plan.evaluation))
    streaming = plan_streaming(config.memory, cost, trained)
    task = Task(config, cost, trained, data, plan_length(config, data), machine, streaming)
    return task, budget_card(config, machine)
