"""Trying again, and reading a remote file in blocks."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.data.backends.patience import MissingError, Patience, UnreachableError
from simpletuner.data.backends.remote import BLOCK_BYTES, KEPT_BLOCKS, LONGEST_RUN, Faults, open_blocks

HASTY = Patience(attempts=3, first_wait_seconds=0.001)


class Elsewhere(io.BytesIO):
    """A file object that notes what is fetched from it and fails when told."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.size = len(content)
        self.fetched: list[tuple[int, int]] = []
        self.failures: list[Exception] = []
        self.short = 0

    def read(self, count: int | None = -1) -> bytes:
        if self.failures:
            raise self.failures.pop(0)
        begin = self.tell()
        data = super().read(count)
        self.fetched.append((begin, len(data)))
        if self.short:
            self.short -= 1
            return data[:-1]
        return data


def explain(error: BaseException) -> UnreachableError:
    return UnreachableError(f"told: {type(error).__name__}", transient=isinstance(error, TimeoutError))


FAULTS = Faults((OSError,), explain)
CONTENT = random.Random(0).randbytes(5 * BLOCK_BYTES + 77)


def test_only_transient_faults_are_tried_again() -> None:
    outcomes: list[Any] = [UnreachableError("busy", transient=True), UnreachableError("busy", transient=True), "done"]

    def act() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    assert HASTY.retry(act) == "done"
    outcomes[:] = [MissingError("gone"), "never asked"]
    with pytest.raises(FileNotFoundError):
        HASTY.retry(act)
    assert outcomes == ["never asked"]
    outcomes[:] = [UnreachableError(f"busy {number}", transient=True) for number in range(4)]
    with pytest.raises(UnreachableError, match="busy 2"):
        HASTY.retry(act)
    assert len(outcomes) == 1


@given(st.integers(1, 30), st.floats(0, 1e4))
def test_waits_double_vary_and_are_bounded(failures: int, asked: float) -> None:
    patience = Patience(first_wait_seconds=0.5, longest_wait_seconds=30)
    wait = patience.wait_seconds(failures, asked)
    whole = 0.5 * 2.0 ** (failures - 1)
    assert min(30, max(whole / 2, asked)) <= wait <= min(30, max(whole, asked))


def test_waits_are_not_all_alike() -> None:
    assert len({Patience().wait_seconds(3) for _ in range(10)}) > 5


@given(st.lists(st.tuples(st.integers(0, len(CONTENT) + 9), st.integers(0, 2 * BLOCK_BYTES)), max_size=8))
def test_any_order_of_reading_gives_the_content(reads: list[tuple[int, int]]) -> None:
    with open_blocks(lambda: Elsewhere(CONTENT), HASTY, FAULTS) as handle:
        for begin, count in reads:
            handle.seek(begin)
            assert handle.read(count) == CONTENT[begin : begin + count]


def test_both_ends_cost_two_blocks() -> None:
    source = Elsewhere(CONTENT)
    with open_blocks(lambda: source, HASTY, FAULTS) as handle:
        handle.read(16)
        handle.seek(-16, io.SEEK_END)
        handle.read(16)
        handle.seek(100)
        handle.read(100)
    assert source.fetched == [(0, BLOCK_BYTES), (5 * BLOCK_BYTES, 77)]


def test_reading_straight_on_asks_for_more_at_once_but_keeps_little() -> None:
    source = Elsewhere(bytes(100 * BLOCK_BYTES))
    with open_blocks(lambda: source, HASTY, FAULTS) as handle:
        for _ in range(100):
            handle.read(BLOCK_BYTES)
        handle.seek(0)
        handle.read(1)
    lengths = [length // BLOCK_BYTES for _, length in source.fetched]
    assert lengths[:5] == [1, 2, 4, 8, LONGEST_RUN]
    assert sum(lengths) == 101, "the first block was no longer kept"
    assert LONGEST_RUN <= KEPT_BLOCKS


def test_a_fault_while_reading_is_explained_and_tried_again() -> None:
    source = Elsewhere(CONTENT)
    source.failures = [TimeoutError(), TimeoutError()]
    source.short = 1
    with open_blocks(lambda: source, Patience(attempts=4, first_wait_seconds=0.001), FAULTS) as handle:
        assert handle.read(100) == CONTENT[:100]
    source = Elsewhere(CONTENT)
    source.failures = [PermissionError()]
    with open_blocks(lambda: source, HASTY, FAULTS) as handle, pytest.raises(UnreachableError, match="PermissionError"):
        handle.read(100)
    assert not source.fetched
