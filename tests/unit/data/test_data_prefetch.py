"""The prefetcher: order, bounds of number and memory, errors, its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count

import pytest

from simpletuner.data.prefetch import Prefetcher


def wait_until_steady(made: list[int]) -> int:
    """How many items were made once no more are."""
    seen = -1
    while seen != len(made):
        seen = len(made)
        time.sleep(0.05)
    return seen


def numbers(made: list[int]) -> Iterator[int]:
    for number in count():
        made.append(number)
        yield number


@pytest.mark.parametrize(("most", "most_bytes", "ahead"), [(3, 10**9, 3), (9, 25, 2), (9, 5, 1)])
def test_no_more_is_prepared_than_fits(most: int, most_bytes: int, ahead: int) -> None:
    """Items of 10 bytes; one more than fits is in the thread's hand, and one always fits."""
    made: list[int] = []
    items = Prefetcher(numbers(made), most=most, most_bytes=most_bytes, size_of=lambda item: 10, name="test-ahead")
    assert wait_until_steady(made) == ahead + 1
    assert [items.take() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert wait_until_steady(made) == ahead + 1 + 5
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "test-ahead"]


def test_an_error_comes_in_its_place() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("broken")

    items = Prefetcher(source(), most=8, most_bytes=100, size_of=lambda item: 1, name="test-ahead")
    assert [items.take(), items.take()] == [1, 2]
    with pytest.raises(OSError, match="broken"):
        items.take()
    items.close()
