"""A bounded queue and the one thread that empties it, so that nobody outside can hold up training.

Putting something in never waits. When there is no room, the oldest thing that may be missed goes
first, and every loss is counted. Knows nothing of events or networks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """Hands items, in order, to `deliver` on a thread of its own.

    What `deliver` or `finish` raises ends the delivery for good: `on_fault` is told once, on that
    thread, and everything still waiting is lost.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[Item], None],
        on_fault: Callable[[BaseException], None],
        *,
        finish: Callable[[], None] = lambda: None,
        room: int = 1000,
        may_be_missed: Callable[[Item], bool] = lambda item: True,
    ) -> None:
        """Nothing runs before the first item.

        Args:
            name: Name of the thread.
            deliver: Called once per item.
            on_fault: Told what ended the delivery.
            finish: Called last, after all items, unless the delivery had ended before.
            room: Items that may wait.
            may_be_missed: Which items are dropped first when there is no room.
        """
        self._deliver, self._finish, self._on_fault = deliver, finish, on_fault
        self._room, self._may_be_missed = room, may_be_missed
        self._items: deque[Item] = deque()
        self._change = threading.Condition()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name=f"outbox-{name}", daemon=True)
        self.lost = 0

    def put(self, item: Item) -> None:
        """Add an item; never waits."""
        with self._change:
            if self._closing.is_set() or self._abandoned.is_set():
                self.lost += 1
                return
            if len(self._items) >= self._room:
                self._drop_one()
            self._items.append(item)
            if not self._thread.ident:
                self._thread.start()
            self._change.notify()

    def pause(self, seconds: float) -> bool:
        """For `deliver`: wait before another attempt; False when there is no time left for one.

        Closing ends the wait early, so that a last attempt can be made.
        """
        if not self._closing.wait(seconds):
            return True
        # The remaining time is shared by what still waits, so pauses are short from here on.
        return not self._abandoned.wait(min(seconds, max(self.seconds_left(), 0) / 4)) and self.seconds_left() > 0

    def seconds_left(self) -> float:
        """Until the delivery is given up; infinite while nobody closes."""
        return self._deadline - time.monotonic()

    def begin_close(self, patience_seconds: float) -> None:
        """Take nothing more; what waits is delivered for at most `patience_seconds`."""
        with self._change:
            self._deadline = time.monotonic() + patience_seconds
            self._closing.set()
            self._change.notify()

    def close(self, patience_seconds: float) -> bool:
        """Deliver what waits, then give up; says whether everything went out.

        Raises:
            KeyboardInterrupt: If the person does not want to wait; call `abandon` then.
        """
        if not self._closing.is_set():
            self.begin_close(patience_seconds)
        if self._thread.ident:
            self._thread.join(max(self.seconds_left(), 0))
        return self.abandon()

    def abandon(self) -> bool:
        """Give up what still waits, without waiting; says whether everything had gone out."""
        with self._change:
            self._abandoned.set()
            self.lost += len(self._items)
            self._items.clear()
            self._change.notify()
        # A thread in the middle of a request is left behind; it does not keep the process alive.
        return self.lost == 0 and not self._thread.is_alive()

    def _drop_one(self) -> None:
        for index, item in enumerate(self._items):
            if self._may_be_missed(item):
                del self._items[index]
                break
        else:
            self._items.popleft()
        self.lost += 1

    def _work(self) -> None:
        try:
            while (taken := self._take()) is not None:
                self._deliver(taken[0])
            if not self._abandoned.is_set():
                self._finish()
        except Exception as error:  # noqa: BLE001 - trackers raise what they like; the owner hears of it
            fault = error
            with self._change:
                self._abandoned.set()
                self.lost += len(self._items) + 1
                self._items.clear()
            self._on_fault(fault)

    def _take(self) -> tuple[Item] | None:
        with self._change:
            while not self._items:
                if self._closing.is_set() or self._abandoned.is_set():
                    return None
                self._change.wait()
            return (self._items.popleft(),)
