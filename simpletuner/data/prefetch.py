"""Prepares what an iterator gives ahead of time, in one thread, within bounds of number and memory.

Nothing here knows what is prepared. Items and the room they leave pass through two queues of the interpreter's own,
which cost the consumer a few microseconds: it is the training thread, and a step waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

_END: Final = -1  # returned in place of a size: nobody takes anything more


@dataclass(frozen=True)
class _Failure:
    """What the thread could not do; raised where the item was asked for."""

    error: BaseException


class Prefetcher(Generic[Item]):
    """Items of an endless iterator in their order, prepared ahead.

    Attributes:
        waited_seconds: How long `take` has waited, the first item left out: nothing could prepare that.
    """

    def __init__(
        self, source: Iterator[Item], *, most: int, most_bytes: int, size_of: Callable[[Item], int], name: str
    ) -> None:
        """Start the thread.

        Args:
            source: Where items come from; only the thread touches it from now on.
            most: Items that wait at most, at least 1; one more is in the thread's hand.
            most_bytes: Bytes that wait at most; one item may exceed it.
            size_of: Bytes of an item.
            name: Name of the thread.
        """
        self._source = source
        self._most = most
        self._most_bytes = most_bytes
        self._size_of = size_of
        self._ready: SimpleQueue[tuple[Item | _Failure, int]] = SimpleQueue()
        self._returned: SimpleQueue[int] = SimpleQueue()  # sizes of items that were taken
        self._taken = 0
        self.waited_seconds = 0.0
        self._thread = threading.Thread(target=self._fill, name=name, daemon=True)
        self._thread.start()

    def take(self) -> Item:
        """The next item; an error of the source is raised here, and then there is nothing more to take."""
        started = time.perf_counter()
        item, size = self._ready.get()
        self._returned.put(size)
        if self._taken:
            self.waited_seconds += time.perf_counter() - started
        self._taken += 1
        if isinstance(item, _Failure):
            raise item.error
        return item

    def close(self) -> None:
        """End the thread and drop what it prepared."""
        self._returned.put(_END)
        self._thread.join()
        while not self._ready.empty():
            self._ready.get()

    def _fill(self) -> None:
        """Prepare and hand over until the consumer closes or the source fails."""
        held, held_bytes = 0, 0
        item: Item | _Failure
        while True:
            try:
                item = next(self._source)
                size = self._size_of(item)
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
                item = _Failure(error)
                size = 0
            # What was taken meanwhile, and what must be taken before there is room.
            while not self._returned.empty() or not self._has_room(held, held_bytes, size):
                returned = self._returned.get()
                if returned == _END:
                    return
                held, held_bytes = held - 1, held_bytes - returned
            self._ready.put((item, size))
            if isinstance(item, _Failure):
                return
            held, held_bytes = held + 1, held_bytes + size

    def _has_room(self, held: int, held_bytes: int, size: int) -> bool:
        return not held or (held < self._most and held_bytes + size <= self._most_bytes)
