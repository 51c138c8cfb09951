"""The queue between training and everybody outside: it never waits, and every loss is counted."""

from __future__ import annotations

import threading
import time

from simpletuner.events.outbox import Outbox


class Bench:
    """A delivery that can be held up and made to fail."""

    def __init__(self, **settings) -> None:
        self.done: list[int] = []
        self.faults: list[BaseException] = []
        self.go = threading.Event()
        self.go.set()
        self.box: Outbox[int] = Outbox(
            "test", self.deliver, self.faults.append, finish=lambda: self.done.append(-1), **settings
        )

    def deliver(self, item: int) -> None:
        self.go.wait(10)
        if item == 13:
            raise RuntimeError("unlucky")
        self.done.append(item)


def test_everything_arrives_in_order_and_then_the_end() -> None:
    bench = Bench()
    for number in range(1, 6):
        bench.box.put(number)
    assert bench.box.close(5.0)
    assert bench.done == [1, 2, 3, 4, 5, -1]
    bench.box.put(6)
    assert bench.box.lost == 1


def test_without_an_item_no_thread_is_started() -> None:
    bench = Bench()
    assert bench.box.close(0.0)
    assert bench.done == []


def test_a_stuck_delivery_holds_up_nobody() -> None:
    bench = Bench(room=3, may_be_missed=lambda item: item < 100)
    bench.go.clear()
    bench.box.put(1)
    time.sleep(0.05)  # it is being delivered now
    begun = time.monotonic()
    for number in (100, 2, 3, 4, 5):
        bench.box.put(number)
    assert not bench.box.close(0.1)
    assert time.monotonic() - begun < 0.5
    assert bench.box.lost == 5  # two had made room for others, three were left
    bench.go.set()
    time.sleep(0.05)
    assert bench.done == [1], "what was given up must not go out later"


def test_without_room_the_oldest_that_may_be_missed_goes_first() -> None:
    bench = Bench(room=3, may_be_missed=lambda item: item < 100)
    bench.go.clear()
    bench.box.put(1)
    time.sleep(0.05)
    for number in (100, 2, 3, 4, 101, 102):
        bench.box.put(number)
    bench.go.set()
    bench.box.close(5.0)
    assert bench.done == [1, 100, 101, 102, -1]
    assert bench.box.lost == 3


def test_a_fault_is_told_once_and_ends_the_delivery() -> None:
    bench = Bench()
    bench.go.clear()
    for number in (1, 13, 2):
        bench.box.put(number)
    bench.go.set()
    assert not bench.box.close(5.0)
    assert [str(fault) for fault in bench.faults] == ["unlucky"]
    assert bench.done == [1]
    assert bench.box.lost == 2


def test_closing_wakes_a_pause() -> None:
    paused: list[bool] = []
    box: Outbox[int] = Outbox("test", lambda item: paused.append(box.pause(60.0)), lambda error: None)
    box.put(1)
    time.sleep(0.05)
    begun = time.monotonic()
    assert box.close(1.0)
    assert paused == [True], "one more attempt is made"
    assert time.monotonic() - begun < 0.9
