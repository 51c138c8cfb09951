"""What a run needs before anything is loaded: memory, time and disk, for one card or for several.

The operations and bytes come from the family's arithmetic, the rates from `config/catalogs/cards.py`;
here they are put together. All times are estimates; the sums behind them are exact and tested. No
torch, and nothing is downloaded or written. Next stops: `forecast_rules.py` judges the result, `cli/plan.py` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from simpletuner.config.catalogs.cards import CARDS, USUAL, CardRow, find_card, match_card
from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.catalogs.precisions import is_quantized
from simpletuner.config.run_config import RunConfig
from simpletuner.models.adapter_cost import lycoris_layers
from simpletuner.models.cost import ModelCost, TrainedPart, cost_source
from simpletuner.recipes.disk_plan import DiskPlan, plan_disk, trained_values
from simpletuner.recipes.forecast_task import Task
from simpletuner.recipes.memory_forecast import Memory, forecast_memory
from simpletuner.recipes.run_length import DataPlan, RunLength, assume_data, plan_data, plan_length
from simpletuner.recipes.streaming_plan import StreamingPlan, plan_streaming
from simpletuner.recipes.time_forecast import Times, forecast_times
from simpletuner.runtime.machine import Machine

if TYPE_CHECKING:
    from simpletuner.recipes.survey import Survey


@dataclass(frozen=True)
class CardForecast:
    """One card's forecast."""

    card: CardRow
    memory: Memory
    times: Times


@dataclass(frozen=True)
class Forecast:
    """Everything `simpletuner plan` tells about a run.

    Attributes:
        cost: The model's arithmetic.
        trained: What is trained.
        data: Data plan; an assumed one where the clips were not read, None without a data set.
        length: Steps, checkpoints, validations.
        disk: What is written.
        streaming: Where the frozen weights are.
        cards: One forecast per card.
    """

    cost: ModelCost
    trained: TrainedPart
    data: DataPlan | None
    length: RunLength
    disk: DiskPlan
    streaming: StreamingPlan
    cards: tuple[CardForecast, ...]

    @property
    def trained_values(self) -> int:
        """Number of trained values."""
        return trained_values(self.cost, self.trained)


def forecast_run(config: RunConfig, survey: Survey | None, cards: Sequence[CardRow], machine: Machine) -> Forecast:
    """The forecast of a run.

    Args:
        config: The run; `model_family` must be set.
        survey: Its data, or None where they were not read: clips of the wanted size are assumed then.
        cards: For which cards.
        machine: Gives cores and memory where a card is the CPU.
    """
    cost = cost_source(str(config.model.model_family)).find(config.model)
    trained = find_trained_part(config, cost)
    data = find_data_plan(config, survey)
    length = plan_length(config, data)
    disk = plan_disk(config, data, length, cost, trained)
    streaming = plan_streaming(config.memory, cost, trained)
    task = Task(config, cost, trained, data, length, machine, streaming)
    return Forecast(
        cost, trained, data, length, disk, streaming,
        tuple(CardForecast(card, forecast_memory(task, card), forecast_times(task, card)) for card in cards),
    )  # fmt: skip


def find_data_plan(config: RunConfig, survey: Survey | None) -> DataPlan | None:
    """What the run trains on; clips of the wanted size where they were not read, None without a data set."""
    return plan_data(config, survey) if survey is not None and survey.samples else assume_data(config)


def choose_cards(name: str, machine: Machine) -> tuple[CardRow, ...]:
    """The cards to tell about: the named one, "all", or with no name the machine's own, else the usual ones.

    Raises:
        UserError: If the name is not known.
    """
    if name == "all":
        return tuple(_own_cpu(machine) if row.per_core else row for row in CARDS.values())
    if name:
        row = find_card(name)
        return (_own_cpu(machine) if row.per_core else row,)
    own = own_card(machine)
    return (own,) if own is not None else (*(CARDS[key] for key in USUAL), _own_cpu(machine))


def _trained_layers(config: RunConfig, cost: ModelCost) -> tuple[tuple[str, ...], int | None]:
    """Layers with an adapter, and its values where they do not follow from `lora_rank`."""
    source, layers = cost_source(str(config.model.model_family)), cost.linear_layers
    if config.lycoris is None:
        named = config.adapter.peft_lora_target_modules
        endings = tuple(named) if named else (str(config.adapter.lora_targets),)
        return source.match_targets(layers, endings)[0], None
    default = FAMILIES[str(config.model.model_family)].module_classes[0]
    kinds = lycoris_layers(config.lycoris, layers, source, default)
    return tuple(kinds), sum(kind.values(*layers[name]) for name, kind in kinds.items())


def _own_cpu(machine: Machine) -> CardRow:
    return replace(CARDS["cpu"], label=f"CPU, {machine.cores} core{'s' if machine.cores > 1 else ''}")


def own_card(machine: Machine) -> CardRow | None:
    """The row of the machine's own card, with its real memory; None without a card that is known."""
    row = match_card(machine.card_name) if machine.card_name else None
    return replace(row, memory_bytes=machine.card_bytes) if row is not None and machine.card_bytes else row


def find_trained_part(config: RunConfig, cost: ModelCost) -> TrainedPart:
    """What the configuration trains, in terms of costs; targets that match no layer are left out."""
    optimizer = OPTIMIZERS[config.optimizer.optimizer]
    precision = config.precision
    stored = str(precision.base_model_precision)
    narrow = precision.base_model_default_dtype if is_quantized(stored) else precision.mixed_precision
    weight_bytes = 2 if narrow == "bf16" else 4
    kind: Literal["lora", "full"] = "full" if str(config.model.model_type) == "full" else "lora"
    targets, values = _trained_layers(config, cost) if kind == "lora" else ((), None)
    return TrainedPart(
        kind=kind,
        targets=targets,
        lora_rank=config.adapter.lora_rank,
        values=values,
        weight_bytes=weight_bytes,
        parameter_bytes=2 if optimizer.parameter_dtype == "bf16" else 4,
        state_bytes=optimizer.state_bytes,
        checkpointing=config.memory.blocks_recomputed(cost.blocks[0]) / cost.blocks[0],
        stored=stored,
        keeps_attention=config.memory.gradient_checkpointing_keep_attention,
        fused=config.model.dynamo_backend == "inductor",
        offloads=config.memory.gradient_checkpointing_offload_attention,
    )
