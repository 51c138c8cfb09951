"""Delivery from the journal: a thread per receiver reads what happened and hands it out, in order.

Nothing waits in memory and nothing is dropped because a receiver is slow: what it has not taken stands
in the journal, and goes out when it is back or when the run is started again. The training thread only
says that there is something new. Knows nothing of networks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from simpletuner.core.errors import UserError
from simpletuner.events.delivery_record import DeliveryRecord
from simpletuner.events.lines import read_from
from simpletuner.events.records import Told, event_of
from simpletuner.events.sinks.journal import JOURNAL, last_sequence
from simpletuner.events.types import Event

WINDOW = 1000  # events that are read ahead of the one under way
OUTDATED = "a newer one of its kind was there"
IN_DOUBT = "the run was killed while it went out"


class LostError(Exception):
    """Raised by a delivery: this event will never be taken; the text says why."""


class NotNowError(Exception):
    """Raised by a delivery: the end came first; the event waits for the next start."""

    def __init__(self, *, in_doubt: bool = False) -> None:
        """`in_doubt`: it went out, and nobody knows whether it arrived."""
        super().__init__()
        self.in_doubt = in_doubt


@dataclass(frozen=True)
class Courier:
    """What a sink does on the follower's thread.

    Attributes:
        deliver: Hands one event out. It calls `Follower.begin` just before anything leaves; it may raise
            `LostError` and `NotNowError`. Any other exception ends the deliveries of this start.
        wants: Whether an event is for this receiver at all.
        remember: Told of every event that is not delivered: unwanted, or settled in an earlier start.
        skips: Why an event is left out, given those behind it; empty when it is not.
        finish: Called last when everything was delivered.
        on_fault: Told what ended the deliveries.
        repeats: Whether an event in doubt goes out again, because the receiver can tell; else it counts as lost.
    """

    deliver: Callable[[Told], None]
    wants: Callable[[Event], bool]
    on_fault: Callable[[BaseException], None]
    remember: Callable[[Told], None] = lambda told: None
    skips: Callable[[Told, Collection[Told]], str] = lambda told, later: ""
    finish: Callable[[], None] = lambda: None
    repeats: bool = False


class Follower:
    """Hands the events of the run in `folder` to one receiver, from where it stood."""

    def __init__(self, folder: Path, receiver: str, courier: Courier) -> None:
        """A receiver that is new to the run folder begins with the next event.

        Args:
            folder: The run folder.
            receiver: Name of the receiver, part of a file's name.
            courier: What to do with the events.

        Raises:
            UserError: If its record cannot be written (exit code 6).
        """
        self._path = folder / JOURNAL
        self._courier = courier
        newest = last_sequence(folder)
        self.record = DeliveryRecord(folder, receiver, newest, self._path.stat().st_size)
        self._newest, self._begun, self._has_failed = newest, False, False
        self._seen, self._offset = self.record.settled, self.record.offset
        self._window: deque[Told] = deque()
        self._change = threading.Condition()
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name=f"follow-{receiver}", daemon=True)

    # For the owner ------------------------------------------------------------------------------

    def notify(self, sequence: int) -> None:
        """Event `sequence` stands in the journal; never waits."""
        with self._change:
            if self._closing.is_set():
                return
            self._newest = sequence
            if not self._thread.ident:
                self._thread.start()
            self._change.notify()

    def seconds_left(self) -> float:
        """Until the deliveries are given up; infinite while nobody closes."""
        return self._deadline - time.monotonic()

    @property
    def has_failed(self) -> bool:
        """Whether the courier broke, and its owner was told."""
        return self._has_failed

    @property
    def is_at_work(self) -> bool:
        """Whether the thread still does something, also after it was given up."""
        return self._thread.is_alive()

    def begin_close(self, patience_seconds: float) -> None:
        """Take nothing more; what the journal holds is delivered for at most `patience_seconds`."""
        with self._change:
            self._deadline = time.monotonic() + patience_seconds
            self._closing.set()
            self._change.notify()

    def wait(self, seconds: float) -> bool:
        """After `begin_close`: whether everything was delivered within `seconds`."""
        if self._thread.ident:
            self._thread.join(max(min(seconds, self.seconds_left()), 0))
        return not self._thread.is_alive()

    def close(self, patience_seconds: float = 0.0) -> int:
        """Deliver what waits, then stop; returns the number of events that wait for the next start.

        Raises:
            KeyboardInterrupt: If the person does not want to wait; call `abandon` then.
        """
        if not self._closing.is_set():
            self.begin_close(patience_seconds)
        self.wait(float("inf"))
        return self.abandon()

    def abandon(self) -> int:
        """Stop without waiting; returns the number of events that wait for the next start."""
        with self._change:
            self._abandoned.set()
            self._change.notify()
        # A thread in the middle of a request is left behind; it does not keep the process alive.
        waiting = self.waiting()
        if not self._thread.is_alive():
            # The record of a full disk has nothing more to say.
            with contextlib.suppress(UserError, OSError):
                if not waiting and self._thread.ident:
                    self.record.skip(*self._last_line())
                self.record.close()
        return waiting

    def waiting(self) -> int:
        """How many events this receiver should still get."""
        return sum(1 for _ in self.pending())

    def pending(self) -> Iterator[Told]:
        """The events that this receiver should still get, those told after the end began left out."""
        offset = self.record.offset
        while found := read_from(self._path, offset, WINDOW):
            offset = found[-1][1]
            for line, end in found:
                if self.record.settled < int(line.get("sequence", 0)) <= self._newest:
                    told = _told(line, end)
                    if told is not None and self._courier.wants(told.event):
                        yield told

    # For the courier, on its thread ---------------------------------------------------------------

    def begin(self, told: Told) -> None:
        """Something leaves now: until it is settled, a kill leaves this event in doubt."""
        if not self._begun:
            self._begun = True
            self.record.begin(told.sequence)

    def pause(self, seconds: float) -> bool:
        """Wait before another attempt; False when there is no time left for one.

        Closing ends the wait early, so that a last attempt can be made.
        """
        if not self._closing.wait(seconds):
            return True
        # The remaining time is shared by what still waits, so pauses are short from here on.
        return not self._abandoned.wait(min(seconds, max(self.seconds_left(), 0) / 4)) and self.seconds_left() > 0

    @property
    def is_closing(self) -> bool:
        """Whether the end of the run is waiting for this receiver."""
        return self._closing.is_set()

    # The thread -----------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._recall()
            while (told := self._take()) is not None:
                self._settle(told)
            if not self._abandoned.is_set():
                self._courier.finish()
        except NotNowError:
            return
        except Exception as error:  # noqa: BLE001 - trackers raise what they like; the owner hears of it
            fault = error
            self._has_failed = True
            self._courier.on_fault(fault)

    def _recall(self) -> None:
        """Let the courier see what was settled in earlier starts."""
        offset = 0
        while offset < self.record.offset and (found := read_from(self._path, offset, WINDOW)):
            for line, end in found:
                told = _told(line, end)
                if told is not None and told.sequence <= self.record.settled:
                    self._courier.remember(told)
            offset = found[-1][1]

    def _take(self) -> Told | None:
        """The next event; None when there is none left or nobody waits for it."""
        while not self._abandoned.is_set():
            self._read_ahead()
            if self._window:
                return self._window.popleft()
            with self._change:
                if self._newest > self._seen:
                    continue
                if self._closing.is_set():
                    return None
                self._change.wait()
        return None

    def _read_ahead(self) -> None:
        if len(self._window) < WINDOW and self._seen < self._newest:
            found = read_from(self._path, self._offset, WINDOW - len(self._window))
            if not found:
                self._seen = self._newest  # the journal was cut off behind our back
            for line, end in found:
                sequence = int(line.get("sequence", 0))
                if sequence > self._newest:
                    break  # told after the end had begun: for the next start
                self._offset, self._seen = end, max(self._seen, sequence)
                told = _told(line, end)
                if told is not None and self.record.settled < sequence:
                    self._window.append(told)

    def _settle(self, told: Told) -> None:
        if not self._courier.wants(told.event):
            self._courier.remember(told)
            return
        in_doubt = told.sequence == self.record.doubtful
        why = IN_DOUBT if in_doubt and not self._courier.repeats else self._why_skip(told)
        if why:
            self._courier.remember(told)
            self.record.lose(told.sequence, told.end, why)
            return
        self._begun = False
        try:
            self._courier.deliver(replace(told, is_repeat=in_doubt))
        except LostError as error:
            self.record.lose(told.sequence, told.end, str(error))
        except NotNowError as error:
            if self._begun and not error.in_doubt:
                self.record.put_back(told.sequence)
            raise
        else:
            if self._begun:
                self.record.take(told.sequence, told.end)

    def _why_skip(self, told: Told) -> str:
        if told.event.is_passing and any(type(later.event) is type(told.event) for later in self._window):
            return OUTDATED
        return self._courier.skips(told, self._window)

    def _last_line(self) -> tuple[int, int]:
        return max(self._seen, self.record.settled), max(self._offset, self.record.offset)


def _told(line: dict[str, object], end: int) -> Told | None:
    event = event_of(line)
    return None if event is None else Told(int(str(line["sequence"])), event, str(line.get("time", "")), end)
