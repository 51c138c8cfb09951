"""One page that tells where the time of a step goes."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from simpletuner.events.types import MemoryMeasured, StepFinished
from simpletuner.events.wording import told_memory, told_size
from simpletuner.runtime.regions import BACKWARD, FORWARD, REGIONS
from simpletuner.runtime.trace_reading import AGAIN, Spent, TraceReading
from simpletuner.runtime.trace_reading import Path as Place

BLOCK: Final = "block "
_OPERATIONS: Final = 12
_WIDTH: Final = 100


@dataclass(frozen=True)
class StepProfile:
    """What was found.

    Attributes:
        device: Where the steps were computed.
        plain: Steps without the profiler: these are the real pace.
        waited_seconds: What those have waited for data.
        traced: Steps under it.
        shapes: What the traced steps held, such as "2 clips of 768x512@49", one per micro-batch.
        reading: Where the time of the traced steps went.
        memory: Peak of tensors, measured before the first step; None without `memory_probe`.
        trace: The trace file.
    """

    device: str
    plain: tuple[StepFinished, ...]
    waited_seconds: float
    traced: tuple[StepFinished, ...]
    shapes: tuple[str, ...]
    reading: TraceReading
    memory: MemoryMeasured | None
    trace: Path

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON; seconds are those of one step."""
        steps = max(self.reading.steps, 1)
        return {
            "device": self.device,
            "steps": self.reading.steps,
            "seconds_per_step": _mean(self.plain),
            "seconds_per_traced_step": _mean(self.traced),
            "waited_seconds_per_step": self.waited_seconds / max(len(self.plain), 1),
            "shapes": dict(Counter(self.shapes)),
            "parts": [
                {"part": list(place), "host_seconds": spent.host / steps, "device_seconds": spent.device / steps}
                for place, spent in self.reading.parts.items()
            ],
            "operations": [
                {"operation": name, "calls": spent.calls / steps, "host_seconds": spent.host / steps,
                 "device_seconds": spent.device / steps}
                for name, spent in _ranked(self.reading.operations)
            ],
            "host_reads": [
                {"operation": name, "part": part, "calls": count / steps}
                for (name, part), count in self.reading.reads.items()
            ],
            "peak_memory_bytes": _peak(self.plain),
            "trace": str(self.trace),
        }  # fmt: skip


def write_page(found: StepProfile) -> str:
    """The page as text, at most about 60 lines of 100 characters."""
    lines = [
        *_head(found),
        "",
        *_parts(found.reading),
        "",
        *_block_by_block(found.reading),
        *_operations(found.reading),
    ]
    return "\n".join([*lines, "", *_foot(found), ""])


def _head(found: StepProfile) -> Iterator[str]:
    shapes = ", ".join(f"{count} x {shape}" for shape, count in Counter(found.shapes).most_common(4))
    count = found.reading.steps
    told_steps = f"{count} step{'s' if count != 1 else ''}"
    yield f"Profile of a training step on {found.device}: {told_steps} ({shapes})"
    yield ""
    plain, traced = _mean(found.plain), _mean(found.traced)
    if plain:
        clips, tokens = (sum(getattr(step, name) for step in found.plain) for name in ("samples", "tokens"))
        seconds = sum(step.seconds for step in found.plain)
        span = f"{_ms(min(s.seconds for s in found.plain))} to {_ms(max(s.seconds for s in found.plain))}"
        yield f"  a step        {_ms(plain)} ({span})"
        yield f"  rates         {1 / plain:.2f} it/s, {clips / seconds:.2f} clips/s, {tokens / seconds:,.0f} tokens/s"
        wait = found.waited_seconds / seconds
        yield f"  data          waited {_ms(found.waited_seconds / len(found.plain))} per step ({wait:.2%})"
        yield f"  the profiler  makes a step take {_ms(traced)} ({traced / plain - 1:+.0%}); shares below are of those"


def _parts(reading: TraceReading) -> Iterator[str]:
    on_device = any(spent.device for spent in reading.parts.values())
    whole, steps = _sum(reading, lambda place: True), max(reading.steps, 1)
    yield f"  {'Where a step goes':<44}{'ms':>10}{'share':>8}" + (f"{'device ms':>12}" if on_device else "")
    for depth, name, spent in _rows(reading):
        share = f"{spent.host / whole.host:7.1%}" if whole.host else ""
        device = f"{1e3 * spent.device / steps:12.2f}" if on_device else ""
        yield f"  {'  ' * depth + name:<44}{1e3 * spent.host / steps:10.2f} {share}{device}"


def _rows(reading: TraceReading) -> Iterator[tuple[int, str, Spent]]:
    """(depth, name, spent) of every line; those of depth 0 add up to the step."""
    for part in REGIONS:
        total = _sum(reading, partial(_begins, (part,)))
        if not total.calls:
            continue
        yield 0, part, total
        if part in (FORWARD, BACKWARD):
            yield from ((1 + depth, name, spent) for depth, name, spent in _within(reading, part) if spent.calls)
    yield 0, "everything else", _sum(reading, lambda place: not place)


def _within(reading: TraceReading, part: str) -> Iterator[tuple[int, str, Spent]]:
    def inside(place: Place) -> bool:
        return place[:1] == (part,) and _is_block(place)

    blocks = {place[1] for place in reading.parts if inside(place)}
    yield 0, f"{len(blocks)} blocks", _sum(reading, inside)
    names = dict.fromkeys(place[2] for place in reading.parts if inside(place) and len(place) > 2)
    for name in names:
        yield 1, name, _sum(reading, partial(_is_part, (part, name)))
    if names:
        yield 1, "the rest of a block", _sum(reading, lambda place: inside(place) and len(place) == 2)
    yield 0, AGAIN, _sum(reading, lambda place: place[:2] == (part, AGAIN))
    around = "before and after the blocks"
    yield (
        0,
        around,
        _sum(
            reading,
            lambda place: place[:1] == (part,) and len(place) > 1 and place[1] != AGAIN and not _is_block(place),
        ),
    )
    yield 0, "objective: noise, positions, loss", _sum(reading, lambda place: place == (part,))


def _begins(with_: Place, place: Place) -> bool:
    return place[: len(with_)] == with_


def _is_part(wanted: Place, place: Place) -> bool:
    """Whether a place is within such a part ("forward", "attn1") of any block."""
    return _is_block(place) and (place[0], *place[2:3]) == wanted


def _is_block(place: Place) -> bool:
    return len(place) > 1 and place[1].startswith(BLOCK)


def _block_by_block(reading: TraceReading) -> list[str]:
    """Milliseconds of each block, forward and backward together, for the one that is unlike the others."""
    steps, spent = max(reading.steps, 1), dict[int, float]()
    on_device = any(part.device for part in reading.parts.values())
    for place, part in reading.parts.items():
        if _is_block(place):
            number = int(place[1].removeprefix(BLOCK))
            spent[number] = spent.get(number, 0.0) + (part.device if on_device else part.host)
    if not spent:
        return []
    told = " ".join(f"{1e3 * spent[number] / steps:.1f}" for number in sorted(spent))
    head = f"Blocks 0 to {max(spent)}, ms forward and backward: "
    return [*textwrap.wrap(head + told, _WIDTH, initial_indent="  ", subsequent_indent="    "), ""]


def _operations(reading: TraceReading) -> Iterator[str]:
    steps = max(reading.steps, 1)
    on_device = any(spent.device for spent in reading.operations.values())
    clock: Callable[[Spent], float] = (lambda spent: spent.device) if on_device else (lambda spent: spent.host)
    whole = clock(_sum(reading, lambda place: True))
    heading = f"Operations, by their own time{' on the device' if on_device else ''}"
    yield f"  {heading:<44}{'ms':>10}{'share':>8}{'calls':>8}"
    for name, spent in _ranked(reading.operations)[:_OPERATIONS]:
        share = f"{clock(spent) / whole:7.1%}" if whole else ""
        yield f"  {name[:43]:<44}{1e3 * clock(spent) / steps:10.2f} {share}{spent.calls / steps:8.0f}"
    named = sum(spent.host for spent in reading.parts.values())
    operations = sum(spent.host for spent in reading.operations.values())
    if named:
        between = named - operations
        yield f"  {'host code between operations':<44}{1e3 * between / steps:10.2f} {between / named:7.1%}"


def _foot(found: StepProfile) -> Iterator[str]:
    steps = max(found.reading.steps, 1)
    reads = found.reading.reads
    told = ", ".join(
        f"{count / steps:.1f} {name}{f' in {part}' if part else ''}" for (name, part), count in reads.items()
    )
    yield f"  host reads per step   {sum(reads.values()) / steps:.1f}{f': {told}' if told else ''}"
    if peak := _peak(found.plain):
        yield f"  peak memory           {told_size(peak)}"
    if found.memory is not None:
        yield f"  {told_memory(found.memory)}"
    yield "  not in these steps    checkpoints, validation, evaluation (`simpletuner plan` forecasts them)"
    yield f"  trace                 {found.trace} (opens in chrome://tracing or Perfetto)"


def _sum(reading: TraceReading, wanted: Callable[[Place], bool]) -> Spent:
    total = Spent()
    for place, spent in reading.parts.items():
        if wanted(place):
            total.add(spent.host, spent.device, spent.calls)
    return total


def _ranked(operations: Mapping[str, Spent]) -> list[tuple[str, Spent]]:
    return sorted(operations.items(), key=lambda pair: (pair[1].device, pair[1].host), reverse=True)


def _mean(steps: tuple[StepFinished, ...]) -> float:
    return sum(step.seconds for step in steps) / len(steps) if steps else 0.0


def _peak(steps: tuple[StepFinished, ...]) -> int:
    return max((step.memory_bytes for step in steps), default=0)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"
