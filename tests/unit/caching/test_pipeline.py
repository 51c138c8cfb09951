"""The three stages overlap, stay within their bounds, keep the order, and stop together."""

from __future__ import annotations

import threading
import time

import pytest

from simpletuner.caching.pipeline import Limits, Pipeline, Refused, Stages


class Workshop:
    """Stages that note what they do; item n belongs to group n // 3."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.written: list[int] = []
        self.groups: list[list[int]] = []
        self.held = self.most_held = 0
        self.lock = threading.Lock()

    def decode(self, item: int) -> int | Refused:
        time.sleep(self.seconds)
        with self.lock:
            self.held += 1
            self.most_held = max(self.most_held, self.held)
        return Refused("odd") if item == 13 else item * 10

    def encode(self, raws: list[int]) -> list[int | Refused]:
        time.sleep(self.seconds)
        with self.lock:
            self.held -= len(raws)
            self.groups.append([raw // 10 for raw in raws])
        return [Refused("not finite") if raw == 40 else raw + 1 for raw in raws]

    def write(self, item: int, made: int) -> None:
        assert made == item * 10 + 1
        time.sleep(self.seconds)
        with self.lock:
            self.written.append(item)

    def stages(self) -> Stages[int, int, int]:
        return Stages(self.decode, self.encode, self.write, lambda item: item // 3, lambda item: 1)


def test_each_item_is_kept_or_refused_once_and_in_order() -> None:
    shop = Workshop()
    results = list(Pipeline(shop.stages(), Limits(2, 3, 1, 1 << 20)).run(iter(range(20))))
    assert sorted(item for item, _ in results) == list(range(20))
    assert {item: why.reason for item, why in results if why} == {13: "odd", 4: "not finite"}
    assert sorted(shop.written) == [item for item in range(20) if item not in (4, 13)]


class SlowToLook(Pipeline[int, int, int]):
    """Looks for what is written only when all that was begun is done."""

    def _take_written(self) -> None:
        time.sleep(0.005)
        super()._take_written()


def test_what_waits_to_be_written_is_not_forgotten_when_writing_is_quick() -> None:
    shop = Workshop()
    stages = Stages(shop.decode, shop.encode, shop.write, lambda item: 0, lambda item: 1)
    results = list(SlowToLook(stages, Limits(20, 3, 1, 1 << 20)).run(iter(range(20))))
    assert sorted(item for item, _ in results) == list(range(20))


def test_neighbours_of_one_group_are_encoded_together() -> None:
    shop = Workshop()
    list(Pipeline(shop.stages(), Limits(2, 3, 1, 1 << 20)).run(iter(range(12))))
    assert shop.groups == [[0, 1], [2], [3, 4], [5], [6, 7], [8], [9, 10], [11]]


@pytest.mark.parametrize("budget", [1, 3])
def test_the_memory_budget_holds_back_the_decoders(budget: int) -> None:
    shop = Workshop(0.002)
    results = list(Pipeline(shop.stages(), Limits(2, 4, 1, budget)).run(iter(range(12))))
    assert len(results) == 12
    assert shop.most_held <= budget


def test_the_stages_overlap() -> None:
    shop = Workshop(0.02)
    started = time.monotonic()
    list(Pipeline(shop.stages(), Limits(1, 1, 1, 1 << 20)).run(iter(range(13))))
    # One after the other would take 13 * 3 * 0.02 = 0.78 s.
    assert time.monotonic() - started < 0.6


@pytest.mark.parametrize("stage", ["decode", "encode", "write"])
def test_the_first_error_stops_everything_and_is_raised(stage: str) -> None:
    shop = Workshop(0.001)
    work = getattr(shop, stage)

    def fail_at_five(*arguments: object) -> object:
        first = arguments[0]
        number = first[0] // 10 if isinstance(first, list) else first
        if number == 5:
            raise OSError("broken")
        return work(*arguments)

    setattr(shop, stage, fail_at_five)
    asked = iter(range(1000))
    with pytest.raises(OSError, match="broken"):
        list(Pipeline(shop.stages(), Limits(1, 2, 2, 1 << 20)).run(asked))
    assert next(asked) < 40
    done = len(shop.written)
    time.sleep(0.02)
    assert len(shop.written) == done


def test_an_interrupt_ends_it_at_once() -> None:
    shop = Workshop(0.05)
    run = Pipeline(shop.stages(), Limits(1, 2, 1, 1 << 20)).run(iter(range(1000)))
    next(run)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    assert time.monotonic() - started < 0.5


def test_an_empty_run_ends() -> None:
    assert list(Pipeline(Workshop().stages(), Limits(1, 1, 1, 1)).run(iter([]))) == []
