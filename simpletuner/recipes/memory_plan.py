"""What `memory_budget` and `gradient_checkpointing_blocks = auto` choose, and why.

What costs nothing but time comes first, and least of it: batches computed in parts that still keep a card busy, the
fewest recomputed blocks, smaller parts, then streamed blocks; what costs accuracy comes last: 8 bits, then 4. Nothing
that somebody set himself is touched. Everything is decided from the forecast, so `simpletuner plan`, `check` and the
run itself come to the same result. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Final

from simpletuner.config.catalogs.cards import CARDS, CardRow
from simpletuner.config.catalogs.precisions import PRECISIONS
from simpletuner.config.commands import read_size
from simpletuner.config.run_config import RunConfig
from simpletuner.config.table import SECTIONS
from simpletuner.events.wording import told_size
from simpletuner.models.cost import cost_source
from simpletuner.recipes.forecast import find_trained_part, own_card
from simpletuner.recipes.forecast_task import Task
from simpletuner.recipes.memory_forecast import TIGHT_SHARE, Memory, forecast_memory
from simpletuner.recipes.run_length import BucketLine, DataPlan, plan_length
from simpletuner.recipes.streaming_plan import StreamingPlan, plan_streaming
from simpletuner.runtime.machine import Machine

AUTO: Final = "auto"
DIAL: Final = "gradient_checkpointing_blocks"
PARTS: Final = "max_tokens_per_pass"
# Of one pass, to keep a card busy: below about 500 reading the weights takes longer than using them.
BUSY_CELLS: Final = 1_000
# Best first; what a package is missing for is passed over.
LADDER: Final = ("no_change", "int8-quanto", "nf4-bnb")
_PACKAGES: Final = {"quanto": "optimum", "bnb": "bitsandbytes"}
_TRAINING: Final = "training"
_RAM_SHARE: Final = 0.7  # of the machine's memory that may hold what waits
# What may change between two starts of a run is chosen anew; this would make another run of it.
PINNED: Final = ("base_model_precision",)


@dataclass(frozen=True)
class Choice:
    """One option that was chosen.

    Attributes:
        option: Its name.
        value: The value.
        why: One sentence.
    """

    option: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"{self.option} = {self.value}: {self.why}"


@dataclass(frozen=True)
class MemoryPlan:
    """A run made to fit.

    Attributes:
        config: The run with all choices.
        choices: What was chosen, in the order of their weight.
        memory: Its forecast on the card.
        most_clips: Clips of the largest size that one forward pass could hold with every block recomputed.
        blocks: How many blocks the transformer has.
    """

    config: RunConfig
    choices: tuple[Choice, ...]
    memory: Memory
    most_clips: int
    blocks: int

    @property
    def fits(self) -> bool:
        """Whether every phase does."""
        return self.memory.verdict == "fits"


def is_wanted(config: RunConfig) -> bool:
    """Whether somebody asked for choices."""
    return bool(config.memory.memory_budget) or config.memory.gradient_checkpointing_blocks == AUTO


def budget_card(config: RunConfig, machine: Machine, named: CardRow | None = None) -> CardRow:
    """The card to fit: the named or the machine's own one, with the budget as its memory if one is given."""
    card = named or own_card(machine) or CARDS["cpu"]
    if not named and machine.card_name and own_card(machine) is None:
        card = replace(CARDS["rtx3090"], label=machine.card_name, memory_bytes=machine.card_bytes, patterns=())
    budget = config.memory.memory_budget
    if not budget or budget == AUTO:
        return card
    try:
        return replace(card, label=f"a budget of {budget}", memory_bytes=float(read_size(budget)))
    except ValueError:
        return card  # told by the rule about memory_budget


def plan_memory(
    config: RunConfig,
    data: DataPlan | None,
    machine: Machine,
    card: CardRow,
    pinned: Mapping[str, Any] | None = None,
    *,
    freely: bool = False,
) -> MemoryPlan:
    """Make the run fit `card`.

    Args:
        config: The run; `model_family` must be set.
        data: What it trains on; None without a data set.
        machine: Whose RAM holds what waits there.
        card: What it must fit; `budget_card` says which.
        pinned: Facts of the checkpoint that the run goes on from; what is in them stays as it is.
        freely: Whether what somebody set himself may be changed too, to see what a card would need.
    """
    return _Planner(config, data, machine, card, pinned or {}, freely).solve()


def with_choices(config: RunConfig, values: Mapping[str, Any], origin: str) -> RunConfig:
    """The configuration with other values, whose origin is told as `origin`."""
    changes: dict[str, Any] = {}
    for attribute, section in SECTIONS.items():
        own = {name: value for name, value in values.items() if name in section.model_fields}
        if own:
            changes[attribute] = config.section(attribute).model_copy(update=own)
    return replace(config, origins={**config.origins, **dict.fromkeys(values, origin)}, **changes)


class _Planner:
    """Tries candidates in their order against the forecast."""

    def __init__(
        self, config: RunConfig, data: DataPlan | None, machine: Machine, card: CardRow, pinned: Mapping[str, Any],
        freely: bool,
    ) -> None:  # fmt: skip
        self._start, self._card, self._machine, self._freely = config, card, machine, freely
        self._cost = cost_source(str(config.model.model_family)).find(config.model)
        self._data, self._length = data, plan_length(config, data)
        self._pinned = {name: pinned[name] for name in PINNED if name in pinned}
        self._blocks = self._cost.blocks[0]
        self._is_adapter = str(config.model.model_type) != "full"
        self._origin = f"memory_budget = {config.memory.memory_budget or AUTO}"
        if not config.memory.memory_budget:
            self._origin = f"{DIAL} = {AUTO}"

    def solve(self) -> MemoryPlan:
        """The choices, those that shape training first; none without a data set."""
        if self._data is None:
            return MemoryPlan(self._start, (), self._memory(self._start), 0, self._blocks)
        self._start, parts = self._in_parts(self._start)
        config, choices = self._base()
        choices = [*parts, *choices]
        for step in (self._dial, self._captions, self._tiles, self._videos):
            config, more = step(config)
            choices += more
        return MemoryPlan(config, tuple(choices), self._memory(config), self._most_clips(config), self._blocks)

    # Training --------------------------------------------------------------------------------------

    def _in_parts(self, config: RunConfig) -> tuple[RunConfig, list[Choice]]:
        """The largest parts of a batch that fit: busy ones before blocks are recomputed, all others after."""
        line = self._largest_line
        if line is None or line.batch_size == 1 or config.optimizer.optimizer_release_gradients:
            return config, []
        if not self._may(PARTS) or config.memory.max_tokens_per_pass is not None:
            return config, []
        sizes = [line.batch_size]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // 2))
        busy = [clips for clips in sizes if clips * line.tokens >= BUSY_CELLS] or sizes[:1]

        def need(clips: int, blocks: int) -> float:
            return self._need_of(self._recomputing(self._cut(config, clips), blocks), _TRAINING)

        tries = [*((clips, 0) for clips in busy), (busy[-1], self._blocks)]
        tries += [(clips, self._blocks) for clips in sizes[len(busy) :]]
        clips, blocks = next((one for one in tries if need(*one) <= self._room), (1, self._blocks))
        if clips == line.batch_size:
            return config, []
        how = "with every block recomputed" if blocks else "without recomputing"
        room = f"{told_size(need(line.batch_size, blocks))} of {told_size(self._room)}"
        why = (
            f"{how} {line.batch_size} clips of {line.bucket} at once would need {room}; "
            f"{clips} at a time are the same step"
        )
        return self._cut(config, clips), [Choice(PARTS, clips * line.tokens, why)]

    @property
    def _largest_line(self) -> BucketLine | None:
        lines = self._data.buckets if self._data is not None else ()
        return max(lines, key=lambda line: line.tokens * line.batch_size, default=None)

    def _cut(self, config: RunConfig, clips: int) -> RunConfig:
        """The run with so many clips of the largest batch at once."""
        line = self._largest_line
        assert line is not None
        return config if clips >= line.batch_size else self._set(config, {PARTS: clips * line.tokens})

    def _base(self) -> tuple[RunConfig, list[Choice]]:
        """Storage and place of the frozen weights: the first candidate that fits with every block recomputed."""
        first = self._recomputing(self._start, self._blocks)
        tried = [(values, self._recomputing(self._set(first, values), self._blocks)) for values in self._candidates()]
        needs = [self._needs(candidate) for _, candidate in tried]
        number = next((n for n, need in enumerate(needs) if need <= self._room), needs.index(min(needs)))
        values = tried[number][0]
        choices = []
        if "base_model_precision" in values:
            pinned = self._pinned.get("base_model_precision")
            before = max((n for n in range(number) if "base_model_precision" not in tried[n][0]), default=0)
            why = (
                "as in the checkpoint that the run goes on from"
                if pinned
                else f"even with every block recomputed training would need {told_size(needs[before])} of "
                f"{told_size(self._room)}; "
                f"{PRECISIONS[values['base_model_precision']].bits} bits take a {self._share(values)} of the memory"
            )
            choices.append(Choice("base_model_precision", values["base_model_precision"], why))
        if "enable_group_offload" in values:
            resident = needs[number - 1] if number else needs[0]
            why = (
                f"with all blocks on the card training would need {told_size(resident)} of {told_size(self._room)}; "
                "they wait in RAM, two are on the card at a time, results are the same"
            )
            choices.append(Choice("enable_group_offload", True, why))
            choices.append(Choice("group_offload_use_stream", True, "the next block comes while the card computes"))
        return self._set(self._start, values), choices

    def _candidates(self) -> Iterator[dict[str, Any]]:
        """Changes to try, the least harmful first; each with everything on the card, then streamed."""
        yield {}
        streams = self._is_adapter and self._may("enable_group_offload") and not self._start.memory.streams_blocks
        streams = streams and self._may("musubi_blocks_to_swap") and self._start.memory.gradient_checkpointing
        streams = streams and not self._card.per_core  # what waits in RAM would lie beside what is used
        streams = streams and (self._may(DIAL) and self._may("gradient_checkpointing_interval"))
        away = {"enable_group_offload": True, "group_offload_use_stream": True}
        ladder = self._ladder()
        if streams and not ladder:
            yield away
        for precision in ladder:
            yield {"base_model_precision": precision}
            if streams and self._waits_in_ram({"base_model_precision": precision, **away}):
                yield {"base_model_precision": precision, **away}

    def _ladder(self) -> Sequence[str]:
        """Storage formats to try below the configured one."""
        pinned = self._pinned.get("base_model_precision")
        own = str(self._start.precision.base_model_precision)
        if pinned is not None:
            return [str(pinned)] if pinned not in (own, "no_change") else ()
        if not self._is_adapter or not self._may("base_model_precision") or not self._start.memory.memory_budget:
            return ()
        return [name for name in LADDER[1:] if name != own and self._is_there(name)]

    def _is_there(self, precision: str) -> bool:
        extra = PRECISIONS[precision].extra
        if extra == "bnb" and self._machine.card_name.startswith("Apple"):
            return False
        return self._freely or find_spec(_PACKAGES[extra]) is not None

    def _waits_in_ram(self, values: Mapping[str, Any]) -> bool:
        if self._freely:
            return True
        streaming = self._streaming(self._set(self._start, values))
        return streaming.waiting_bytes <= _RAM_SHARE * self._machine.memory_bytes

    def _share(self, values: Mapping[str, Any]) -> str:
        return "quarter" if PRECISIONS[values["base_model_precision"]].bits == 4 else "half"

    def _dial(self, config: RunConfig) -> tuple[RunConfig, list[Choice]]:
        """The fewest recomputed blocks with which training fits."""
        settings = config.memory
        if settings.streams_blocks:
            solved = replace(config, memory=settings.model_copy(update={DIAL: None}))
            return (solved if settings.gradient_checkpointing_blocks == AUTO else config), []
        is_free = self._may(DIAL) and self._may("gradient_checkpointing_interval") and settings.gradient_checkpointing
        if settings.gradient_checkpointing_blocks != AUTO and not is_free:
            return config, []
        low, high = 0, self._blocks
        while low < high:
            middle = (low + high) // 2
            fits = self._needs(self._recomputing(config, middle)) <= self._room
            low, high = (low, middle) if fits else (middle + 1, high)
        need = self._needs(self._recomputing(config, low))
        room = f"{told_size(need)} of {told_size(self._room)}"
        if need > self._room:
            why = f"all of them, and training still needs {room}"
        elif low == 0:
            why = f"nothing has to be computed twice: training needs {room}"
        else:
            more = told_size(self._needs(self._recomputing(config, low - 1)))
            share = low / self._blocks
            why = f"training needs {room}, with one block less {more}; it costs {share:.0%} of a forward pass per step"
        return self._set(config, {DIAL: low}), [Choice(DIAL, low, why)]

    def _most_clips(self, config: RunConfig) -> int:
        """Clips of the largest size that fit into one forward pass, found by the growth from one to two."""
        largest = self._largest_line
        if largest is None:
            return 0
        whole = replace(config, memory=config.memory.model_copy(update={PARTS: None}))
        parts = self._memory(self._recomputing(whole, self._blocks)).phases[_TRAINING]
        growing = (parts["activations"] + parts["batch"]) / max(largest.batch_size, 1)
        fixed = sum(parts.values()) - growing * largest.batch_size
        return max(int((self._room - fixed) // growing), 0)

    # The other phases ------------------------------------------------------------------------------

    def _captions(self, config: RunConfig) -> tuple[RunConfig, list[Choice]]:
        option = "group_offload_text_encoder"
        if not self._overflows(config, ("encoding captions",)) or not self._may(option) or self._card.per_core:
            return config, []
        need = self._need_of(config, "encoding captions")
        why = f"encoding captions would need {told_size(need)}; its blocks come one by one, results are the same"
        return self._set(config, {option: True}), [Choice(option, True, why)]

    def _tiles(self, config: RunConfig) -> tuple[RunConfig, list[Choice]]:
        option, phases = "vae_enable_tiling", ("encoding clips", "decoding videos", "previews")
        if not self._overflows(config, phases) or not self._may(option) or config.caching.vae_enable_tiling:
            return config, []
        phase = max(phases, key=lambda name: self._need_of(config, name))
        why = f"{phase} would need {told_size(self._need_of(config, phase))} of {told_size(self._room)} in one piece"
        return self._set(config, {option: True}), [Choice(option, True, why)]

    def _videos(self, config: RunConfig) -> tuple[RunConfig, list[Choice]]:
        option = "enable_model_cpu_offload"
        if not self._overflows(config, ("decoding videos",)) or not self._may(option) or not self._is_adapter:
            return config, []
        if config.memory.streams_blocks or self._card.per_core:
            return config, []
        need = self._need_of(config, "decoding videos")
        why = f"decoding beside the transformer would need {told_size(need)}; it waits in RAM meanwhile"
        return self._set(config, {option: True}), [Choice(option, True, why)]

    # Weighing --------------------------------------------------------------------------------------

    @property
    def _room(self) -> float:
        return TIGHT_SHARE * (self._card.memory_bytes or self._machine.memory_bytes)

    def _may(self, option: str) -> bool:
        """Whether nobody has set the option himself."""
        if self._freely:
            return True
        if not self._start.memory.memory_budget and option not in (DIAL, "gradient_checkpointing_interval"):
            return False
        return self._start.origins.get(option, "default").startswith("default")

    def _set(self, config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
        return with_choices(config, values, self._origin) if values else config

    def _recomputing(self, config: RunConfig, blocks: int) -> RunConfig:
        """The run with so many blocks recomputed, where that may be chosen."""
        settings = config.memory
        fixed = settings.gradient_checkpointing_blocks != AUTO and not (
            self._may(DIAL) and self._may("gradient_checkpointing_interval") and settings.gradient_checkpointing
        )
        if fixed or settings.streams_blocks:
            return config
        return replace(config, memory=settings.model_copy(update={DIAL: blocks}))

    def _streaming(self, config: RunConfig) -> StreamingPlan:
        return plan_streaming(config.memory, self._cost, find_trained_part(config, self._cost))

    def _memory(self, config: RunConfig) -> Memory:
        trained = find_trained_part(config, self._cost)
        streaming = plan_streaming(config.memory, self._cost, trained)
        task = Task(config, self._cost, trained, self._data, self._length, self._machine, streaming)
        return forecast_memory(task, self._card)

    def _need_of(self, config: RunConfig, phase: str) -> float:
        return sum(self._memory(config).phases.get(phase, {}).values())

    def _needs(self, config: RunConfig) -> float:
        """What has to be there while the transformer works: training, and denoising of its videos."""
        phases = self._memory(config).phases
        return max(sum(phases.get(name, {}).values()) for name in (_TRAINING, "denoising videos"))

    def _overflows(self, config: RunConfig, phases: Sequence[str]) -> bool:
        if not self._start.memory.memory_budget:
            return False
        return any(self._need_of(config, phase) > self._room for phase in phases)
