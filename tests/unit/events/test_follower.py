"""Delivery from the journal: order, what a kill leaves, what waits and what is lost."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from simpletuner.events.delivery_record import DeliveryRecord
from simpletuner.events.follower import IN_DOUBT, OUTDATED, Courier, Follower, LostError, NotNowError
from simpletuner.events.records import Told
from simpletuner.events.sinks.journal import JournalSink, last_sequence
from simpletuner.events.types import Event, Noticed, StageAdvanced


class Bench:
    """A start of a run with one receiver, which can be held up and made to fail."""

    def __init__(self, folder: Path, **settings) -> None:
        self.taken: list[str] = []
        self.remembered: list[int] = []
        self.faults: list[BaseException] = []
        self.go, self.at_work = threading.Event(), threading.Event()
        self.go.set()
        self._journal, self._sequence = JournalSink(folder), last_sequence(folder)
        courier = Courier(
            self.deliver,
            lambda event: isinstance(event, Noticed),
            self.faults.append,
            remember=lambda told: self.remembered.append(told.sequence),
            finish=lambda: self.taken.append("end"),
        )
        self.follower = Follower(folder, "test", replace(courier, **settings))

    def tell(self, *words: str) -> None:
        for word in words:
            self.emit(Noticed("note", word))

    def emit(self, event: Event) -> None:
        self._sequence += 1
        self._journal.receive(event, self._sequence)
        self.follower.notify(self._sequence)

    def deliver(self, told: Told) -> None:
        assert isinstance(told.event, Noticed)
        word = told.event.text
        if word == "lost":
            raise LostError("no good")
        if word == "later":
            raise NotNowError
        if word == "broken":
            raise RuntimeError("unlucky")
        self.follower.begin(told)
        self.at_work.set()
        self.go.wait(10)
        self.taken.append(word + ("!" if told.is_repeat else ""))


def test_everything_arrives_in_order_and_then_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.tell("1", "2")
    bench.emit(StageAdvanced("x", 1))
    bench.tell("3")
    assert bench.follower.close(5.0) == 0
    assert bench.taken == ["1", "2", "3", "end"]
    assert bench.remembered == [3]
    again = Bench(tmp_path)
    again.tell("4")
    again.follower.close(5.0)
    assert again.taken == ["4", "end"]
    assert again.remembered == [1, 2, 3, 4], "what was settled is remembered"


def test_a_receiver_that_is_new_begins_with_the_next_event(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)
    sink.receive(Noticed("note", "before"), 1)
    sink.close()
    bench = Bench(tmp_path)
    bench.tell("after")
    bench.follower.close(5.0)
    assert bench.taken == ["after", "end"]


def test_a_stuck_delivery_holds_up_nobody_and_the_rest_waits(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.go.clear()
    begun = time.monotonic()
    bench.tell(*"12345")
    bench.at_work.wait(5)
    assert bench.follower.close(0.05) == 5
    assert time.monotonic() - begun < 2.0
    bench.go.set()


@pytest.mark.parametrize(("repeats", "taken"), [(True, ["1", "2!", "3", "end"]), (False, ["1", "3", "end"])])
def test_what_a_kill_leaves_in_doubt(tmp_path: Path, repeats: bool, taken: list[str]) -> None:
    bench = Bench(tmp_path)
    bench.tell("1")
    bench.follower.wait(0.0)
    while bench.taken != ["1"]:
        time.sleep(0.01)
    bench.go.clear()
    bench.at_work.clear()
    bench.tell("2", "3")
    bench.at_work.wait(5)  # "2" is out, and then this process ends as far as the files can tell
    again = Bench(tmp_path, repeats=repeats)
    again.taken.append("1")
    assert again.follower.record.doubtful == 2
    again.follower.notify(3)
    again.follower.close(5.0)
    assert again.taken == taken
    assert again.follower.record.lost == ({} if repeats else {IN_DOUBT: 1})
    bench.follower.abandon()
    bench.go.set()


def test_what_is_lost_is_counted_and_what_waits_is_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.tell("1", "lost", "2", "later", "3")
    assert bench.follower.close(5.0) == 2
    assert bench.taken == ["1", "2"]
    assert bench.follower.record.lost == {"no good": 1}
    again = Bench(tmp_path)
    assert (again.follower.record.settled, again.follower.record.doubtful) == (3, 0)
    assert again.follower.record.lost == {"no good": 1}


def test_a_fault_is_told_once_and_ends_the_deliveries(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.tell("1", "broken", "2")
    assert bench.follower.close(5.0) == 2
    assert [str(fault) for fault in bench.faults] == ["unlucky"]
    assert bench.taken == ["1"]


def test_what_is_outdated_is_left_out_when_the_receiver_lags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noticed, "is_passing", True)
    bench = Bench(tmp_path)
    bench.go.clear()
    bench.tell(*"1234")
    bench.at_work.wait(5)
    bench.tell("5")
    bench.go.set()
    bench.follower.close(5.0)
    assert bench.taken[-2:] == ["5", "end"]
    assert len(bench.taken) + bench.follower.record.lost[OUTDATED] == 6


def test_closing_wakes_a_pause(tmp_path: Path) -> None:
    paused: list[bool] = []
    bench = Bench(tmp_path, deliver=lambda told: paused.append(bench.follower.pause(60.0)))
    bench.tell("1")
    time.sleep(0.05)
    begun = time.monotonic()
    bench.follower.close(1.0)
    assert paused == [True], "one more attempt is made"
    assert time.monotonic() - begun < 0.9


def test_a_record_keeps_its_place_however_long_it_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpletuner.events.delivery_record._LARGEST_BYTES", 400)
    record = DeliveryRecord(tmp_path, "r", 0, 0)
    for number in range(1, 50):
        record.begin(number)
        if number % 10 == 0:
            record.lose(number, number * 10, "why")
        else:
            record.take(number, number * 10)
    record.begin(50)
    record.close()
    assert (tmp_path / "delivery" / "r.jsonl").stat().st_size < 800
    again = DeliveryRecord(tmp_path, "r", 60, 700)
    assert (again.thread, again.settled, again.offset, again.doubtful) == (record.thread, 49, 490, 50)
    assert again.lost == {"why": 4}
    another = DeliveryRecord(tmp_path, "r", 12, 100)
    assert (another.settled, another.lost) == (12, {}), "the journal was deleted and began anew"
