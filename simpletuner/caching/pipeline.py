"""Decode, encode and write at the same time, each ahead of the next by a bounded amount.

Threads decode and write, one or two more encode; the calling thread only passes work on, in the order in which it came.
The first error stops everything and is raised; so does Ctrl-C. This module knows neither clips nor tensors, only the
three functions it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Raw = TypeVar("Raw")
Made = TypeVar("Made")

# Entries are small beside what they are made from; a few hide the disk's pauses.
_WRITES_AHEAD = 8
_WRITERS = 2


@dataclass(frozen=True)
class Refused:
    """Why an item cannot be made.

    Attributes:
        reason: For the user to read.
        damaged: Whether the bytes it comes from are at fault.
    """

    reason: str
    damaged: bool = False


@dataclass(frozen=True)
class Stages(Generic[Item, Raw, Made]):
    """What is done to every item.

    Attributes:
        decode: Item -> raw data. Runs in many threads.
        encode: Raw data of one group -> what is made of each. Runs in `lanes` threads.
        write: Keeps what was made. Runs in a few threads.
        group_of: Items with equal values, following each other, may be encoded together.
        raw_bytes: Memory that an item's raw data will take.
    """

    decode: Callable[[Item], Raw | Refused]
    encode: Callable[[list[Raw]], Sequence[Made | Refused]]
    write: Callable[[Item, Made], None]
    group_of: Callable[[Item], object]
    raw_bytes: Callable[[Item], int]


@dataclass(frozen=True)
class Limits:
    """How much is in hand at once.

    Attributes:
        group: Items encoded together, at least 1.
        decoders: Threads that decode.
        lanes: Threads that encode.
        raw_bytes: Raw data waiting for the encoder or in it; one item may exceed it.
    """

    group: int
    decoders: int
    lanes: int
    raw_bytes: int


class Pipeline(Generic[Item, Raw, Made]):
    """One pass of items through the three stages."""

    def __init__(self, stages: Stages[Item, Raw, Made], limits: Limits) -> None:
        self._stages = stages
        self._limits = limits
        self._decoding: deque[tuple[Item, Future[Raw | Refused]]] = deque()
        self._group: list[tuple[Item, Raw]] = []
        self._encoding: deque[tuple[list[Item], Future[Sequence[Made | Refused]]]] = deque()
        self._to_write: deque[tuple[Item, Made]] = deque()
        self._writing: deque[tuple[Item, Future[None]]] = deque()
        self._results: deque[tuple[Item, Refused | None]] = deque()
        self._held_bytes = 0
        self._spent = False

    def run(self, items: Iterator[Item]) -> Iterator[tuple[Item, Refused | None]]:
        """Yield (item, None) when an item is kept, (item, why) when it cannot be, as they are done.

        Raises:
            BaseException: The first that a stage raised.
        """
        limits = self._limits
        decoders = ThreadPoolExecutor(limits.decoders, thread_name_prefix="decode")
        lanes = ThreadPoolExecutor(limits.lanes, thread_name_prefix="encode")
        writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        try:
            while True:
                self._start_decoding(items, decoders)
                self._form_groups(lanes)
                self._take_encoded(writers)
                self._take_written()
                while self._results:
                    yield self._results.popleft()
                heads = self._awaited()
                if heads:
                    wait(heads, return_when=FIRST_COMPLETED)
                elif self._spent and not self._is_busy():
                    return
        finally:
            # Nobody waits for what nobody will use; but what is being written is finished.
            decoders.shutdown(wait=False, cancel_futures=True)
            lanes.shutdown(wait=False, cancel_futures=True)
            writers.shutdown(wait=True, cancel_futures=True)

    def _is_busy(self) -> bool:
        """Whether anything is under way; what waits to be written counts even while nothing is being written."""
        return bool(self._decoding or self._group or self._encoding or self._to_write or self._writing or self._results)

    def _awaited(self) -> list[Future[Any]]:
        """The oldest piece of work of each stage whose end lets something go on."""
        heads: list[Future[Any]] = []
        if self._decoding and len(self._encoding) <= self._limits.lanes:
            heads.append(self._decoding[0][1])
        if self._encoding and len(self._to_write) < _WRITES_AHEAD:
            heads.append(self._encoding[0][1])
        if self._writing:
            heads.append(self._writing[0][1])
        return heads

    def _start_decoding(self, items: Iterator[Item], pool: ThreadPoolExecutor) -> None:
        ahead = self._limits.decoders + self._limits.group
        while not self._spent and len(self._decoding) < ahead:
            if self._held_bytes >= self._limits.raw_bytes:
                return
            item = next(items, None)
            if item is None:
                self._spent = True
                return
            self._held_bytes += self._stages.raw_bytes(item)
            self._decoding.append((item, pool.submit(self._stages.decode, item)))

    def _form_groups(self, pool: ThreadPoolExecutor) -> None:
        # One group waits for each lane to become free, so that none is idle.
        while self._decoding and self._decoding[0][1].done() and len(self._encoding) <= self._limits.lanes:
            item, future = self._decoding[0]
            raw = future.result()
            if self._group and self._stages.group_of(self._group[0][0]) != self._stages.group_of(item):
                self._start_encoding(pool)
                continue
            self._decoding.popleft()
            if isinstance(raw, Refused):
                self._finish(item, raw)
                continue
            self._group.append((item, raw))
            if len(self._group) == self._limits.group:
                self._start_encoding(pool)
        # What is still undecoded cannot join when no more is let in: the last group, or the memory is full.
        if self._group and not self._decoding:
            self._start_encoding(pool)

    def _start_encoding(self, pool: ThreadPoolExecutor) -> None:
        items, raws = [item for item, _ in self._group], [raw for _, raw in self._group]
        self._group = []
        self._encoding.append((items, pool.submit(self._stages.encode, raws)))

    def _take_encoded(self, pool: ThreadPoolExecutor) -> None:
        while self._encoding and self._encoding[0][1].done() and len(self._to_write) < _WRITES_AHEAD:
            items, future = self._encoding.popleft()
            for item, made in zip(items, future.result(), strict=True):
                self._held_bytes -= self._stages.raw_bytes(item)
                if isinstance(made, Refused):
                    self._results.append((item, made))
                else:
                    self._to_write.append((item, made))
        while self._to_write and len(self._writing) < _WRITES_AHEAD:
            item, done = self._to_write.popleft()
            self._writing.append((item, pool.submit(self._stages.write, item, done)))

    def _take_written(self) -> None:
        while self._writing and self._writing[0][1].done():
            item, future = self._writing.popleft()
            future.result()
            self._results.append((item, None))

    def _finish(self, item: Item, why: Refused) -> None:
        self._held_bytes -= self._stages.raw_bytes(item)
        self._results.append((item, why))
