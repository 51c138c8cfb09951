"""Adds up a profiler's events: how long each named part of a step took, on the host and on the device.

Each event counts with the time that no event below it explains, so that the parts of a step add up to the step. A
backward operation belongs to the part whose forward operation made it: autograd numbers them (`sequence_nr`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch._C._autograd import DeviceType

from simpletuner.runtime.regions import BACKWARD, FORWARD, PREFIX, REGIONS, STEP

AGAIN: Final = "computed again"
ENGINE: Final = "autograd::engine::evaluate_function"
# What makes a host wait for its device where the value lies there: a number that is looked at, a shape that depends on
# values, a comparison; and the waits of CUDA by their own names.
READS: Final = frozenset(
    (
        *(f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")),
        "aten::_unique2",
        *(f"cuda{name}Synchronize" for name in ("Stream", "Event", "Device")),
    )
)
_COPIES_BACK: Final = "Memcpy DtoH"

Path = tuple[str, ...]


@dataclass
class Spent:
    """Seconds of the host and of the device, and how many events they are of."""

    host: float = 0.0
    device: float = 0.0
    calls: int = 0

    def add(self, host: float, device: float, calls: int = 1) -> None:
        self.host, self.device, self.calls = self.host + host, self.device + device, self.calls + calls


@dataclass
class TraceReading:
    """What a trace says.

    Attributes:
        steps: Steps that it holds.
        parts: Path of names, such as ("forward", "block 3", "attn1") -> what was spent there and not below; () is
            what lies between the named parts of a step.
        operations: Name of an operation -> what it spent itself.
        reads: (operation, first part) -> how often the host asked the device for a value.
    """

    steps: int = 0
    parts: dict[Path, Spent] = field(default_factory=dict)
    operations: dict[str, Spent] = field(default_factory=dict)
    reads: Counter[tuple[str, str]] = field(default_factory=Counter)


def read_trace(events: Sequence[Any]) -> TraceReading:
    """Read the events of `torch.profiler.profile.events()`; what lies outside of steps counts for nothing."""
    reading, made = TraceReading(), dict[tuple[int, int], Path]()
    places: dict[int, Path | None] = {}
    elsewhere = 0.0  # host seconds of backward operations on threads of their own, beside the one that waits for them
    main = next((event.thread for event in events if event.name == PREFIX + STEP), None)
    for event in sorted(events, key=lambda one: (one.time_range.start, -one.time_range.end)):
        if event.device_type != DeviceType.CPU:
            if event.name.startswith(_COPIES_BACK):
                reading.reads[_COPIES_BACK, ""] += 1
            continue
        if event.is_async:
            continue
        parent = None if event.cpu_parent is None else places.get(id(event.cpu_parent))
        place = places[id(event)] = _place(event, parent, made)
        if place is None:
            continue
        if event.sequence_nr >= 0 and place[:1] == (FORWARD,):
            # The last one that begins with a number is the one that used it.
            made[event.thread, event.sequence_nr] = place
        host, device = 1e-6 * event.self_cpu_time_total, 1e-6 * event.self_device_time_total
        if event.thread != main:
            elsewhere += host
        reading.parts.setdefault(place, Spent()).add(host, device)
        if not event.name.startswith(PREFIX):
            reading.operations.setdefault(event.name.removeprefix(f"{ENGINE}: "), Spent()).add(host, device)
        elif event.name == PREFIX + STEP:
            reading.steps += 1
        if event.name in READS:
            reading.reads[event.name, place[0] if place else ""] += 1
    if (waiting := reading.parts.get((BACKWARD,))) is not None:
        waiting.host = max(waiting.host - elsewhere, 0.0)
    return reading


def _place(event: Any, parent: Path | None, made: dict[tuple[int, int], Path]) -> Path | None:
    """The path of names that an event belongs to; None outside of steps."""
    if event.name == PREFIX + STEP:
        return ()
    if event.name.startswith(ENGINE):
        return (BACKWARD, *made.get((event.fwd_thread, event.sequence_nr), (FORWARD,))[1:])
    if parent is None or not event.name.startswith(PREFIX):
        return parent
    name = event.name.removeprefix(PREFIX)
    if name in REGIONS:
        return (name,)  # parameters may move within the backward pass
    return (BACKWARD, AGAIN) if parent[:1] == (BACKWARD,) else (*parent, name)
