"""Prepares what an iterator gives ahead of time, in one thread, within bounds of number and memory.

Nothing here knows what is prepared.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


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
        self._ready: deque[tuple[Item | _Failure, int]] = deque()
        self._held_bytes = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._taken = 0
        self.waited_seconds = 0.0
        self._thread = threading.Thread(target=self._fill, name=name, daemon=True)
        self._thread.start()

    def take(self) -> Item:
        """The next item; an error of the source is raised here, and then there is nothing more to take."""
        started = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready))
            item, size = self._ready.popleft()
            self._held_bytes -= size
            self._changed.notify_all()
        if self._taken:
            self.waited_seconds += time.perf_counter() - started
        self._taken += 1
        if isinstance(item, _Failure):
            raise item.error
        return item

    def close(self) -> None:
        """End the thread and drop what it prepared."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        self._ready.clear()

    def _fill(self) -> None:
        item: Item | _Failure
        while not self._stopped:
            try:
                item = next(self._source)
                size = self._size_of(item)
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
                item = _Failure(error)
                size = 0
            with self._changed:
                while not (self._stopped or self._has_room(size)):
                    self._changed.wait()
                self._ready.append((item, size))
                self._held_bytes += size
                self._changed.notify_all()
            if isinstance(item, _Failure):
                return

    def _has_room(self, size: int) -> bool:
        if not self._ready:
            return True
        return len(self._ready) < self._most and self._held_bytes + size <= self._most_bytes
