"""The order of an epoch: the same everywhere, complete, mixed by weight, cut in one pass over arrays."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.data.batch_rules import count_steps
from simpletuner.data.order import Cut, DrawTable, Places, cut_batches, order_epoch

quick = settings(max_examples=80, deadline=None)


def table(
    sizes: list[int], weights: list[float] | None = None, capacity: list[int] | None = None, by_set: bool = False
) -> DrawTable:
    """One data set per size, each with one bucket of its own."""
    sets = np.repeat(np.arange(len(sizes)), sizes)
    return DrawTable(
        samples=np.arange(len(sets)),
        groups=sets,
        capacity=np.array(capacity or [1] * len(sizes)),
        sets=sets,
        weights=np.array(weights or [1.0] * len(sizes)),
        by_set=by_set,
    )


def batch_sets(chosen: DrawTable, seed: int, epoch: int = 1) -> Places:
    """The data set of each batch of an epoch."""
    order = order_epoch(chosen, seed, epoch)
    cut = cut_batches(chosen.groups[order], chosen.capacity)
    return chosen.sets[order][cut.places[cut.starts[:-1]]]


PINNED_EVEN = [4, 5, 1, 2, 3, 6, 0, 7]
PINNED_WEIGHTED = [7, 6, 0, 5, 3, 4, 2, 1]
PINNED_BY_SET = [4, 5, 6, 7, 1, 2, 3, 0]


def test_an_order_is_pinned_for_all_time() -> None:
    """A saved position means the same draws on every machine and with every release of NumPy."""
    assert order_epoch(table([8]), 42, 1).tolist() == PINNED_EVEN
    assert order_epoch(table([4, 4], [1.0, 3.0]), 42, 1).tolist() == PINNED_WEIGHTED
    assert order_epoch(table([4, 4], [1.0, 3.0], by_set=True), 42, 1).tolist() == PINNED_BY_SET


def test_orders_differ_between_epochs_and_seeds_only() -> None:
    draws = table([50])
    first = order_epoch(draws, 1, 1)
    assert np.array_equal(first, order_epoch(draws, 1, 1))
    assert not np.array_equal(first, order_epoch(draws, 1, 2))
    assert not np.array_equal(first, order_epoch(draws, 2, 1))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.data(), st.booleans(), st.integers(0, 2**40))
@quick
def test_every_order_holds_every_draw_once(sizes: list[int], data: st.DataObject, by_set: bool, seed: int) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 100), min_size=len(sizes), max_size=len(sizes)))
    order = order_epoch(table(sizes, weights, by_set=by_set), seed, 1)
    assert sorted(order.tolist()) == list(range(sum(sizes)))


def test_a_plain_order_is_a_uniform_permutation() -> None:
    """Each draw comes at each place equally often; of 3 draws all 6 orders appear."""
    orders = Counter(tuple(order_epoch(table([2, 1]), seed, 1).tolist()) for seed in range(6000))
    assert len(orders) == 6
    assert all(abs(count - 1000) < 150 for count in orders.values())


def test_equal_probabilities_are_no_weights() -> None:
    assert np.array_equal(order_epoch(table([5, 9], [2.5, 2.5]), 3, 1), order_epoch(table([14]), 3, 1))


@pytest.mark.parametrize(("weight", "share"), [(1.0, 0.25), (3.0, 0.5), (9.0, 0.75)])
def test_probability_weighs_what_a_set_has_left(weight: float, share: float) -> None:
    """100 draws of weight w against 300 of weight 1: the first one is of the small set with chance w / (w + 3)."""
    first = [order_epoch(table([100, 300], [weight, 1.0]), seed, 1)[0] < 100 for seed in range(2000)]
    assert np.mean(first) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize(("weights", "share"), [([1.0, 1.0], 0.5), ([1.0, 4.0], 0.2)])
@pytest.mark.parametrize("capacity", [[1, 1], [4, 1], [2, 8]])
def test_uniform_draws_between_sets_whatever_their_size(
    weights: list[float], share: float, capacity: list[int]
) -> None:
    """A tiny and a large set give batches at their weights until the tiny one has none left."""
    chosen = table([200 * capacity[0], 5000 * capacity[1]], weights, capacity, by_set=True)
    shares = [np.mean(batch_sets(chosen, seed)[:150] == 0) for seed in range(40)]
    assert np.mean(shares) == pytest.approx(share, abs=0.03)
    assert np.count_nonzero(batch_sets(chosen, 1) == 0) == 200


def test_weights_do_not_change_how_often_a_sample_is_trained() -> None:
    for by_set in (False, True):
        sets = batch_sets(table([30, 60], [5.0, 1.0], [3, 2], by_set), 1)
        assert Counter(sets.tolist()) == {0: 10, 1: 30}


# Cutting ----------------------------------------------------------------------------------------


def cut_one_by_one(groups: list[int], capacity: list[int]) -> list[list[int]]:
    """What `cut_batches` promises, said in the plainest way."""
    open_batches: dict[int, list[int]] = {}
    batches = []
    for place, group in enumerate(groups):
        if group not in open_batches:
            open_batches[group] = []
            batches.append(open_batches[group])
        open_batches[group].append(place)
        if len(open_batches[group]) == capacity[group]:
            del open_batches[group]
    return batches


def batches_of(cut: Cut) -> list[list[int]]:
    return [cut.batch(number).tolist() for number in range(len(cut.starts) - 1)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.lists(st.integers(1, 5), min_size=4, max_size=4))
@quick
def test_cutting_is_what_it_says(groups: list[int], capacity: list[int]) -> None:
    cut = cut_batches(np.array(groups), np.array(capacity))
    assert batches_of(cut) == cut_one_by_one(groups, capacity)


@pytest.mark.parametrize(
    ("batches", "accumulation", "processes", "counted"),
    [(10, 1, 1, (10, 10)), (10, 3, 1, (4, 10)), (10, 2, 2, (3, 5)), (9, 2, 2, (3, 5)), (1, 4, 4, (1, 1))],
)
def test_counting_steps(batches: int, accumulation: int, processes: int, counted: tuple[int, int]) -> None:
    assert count_steps(batches, accumulation, processes) == counted


def test_a_million_draws_are_ordered_and_cut_quickly() -> None:
    """About 0.4 s on one core; the bound is loose for busy machines."""
    draws = table([200_000] * 5, [1.0, 2.0, 1.0, 1.0, 1.0], [1, 2, 4, 8, 16])
    started = time.process_time()
    order = order_epoch(draws, 1, 1)
    cut_batches(draws.groups[order], draws.capacity)
    assert time.process_time() - started < 4


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys, simpletuner.data.tails, simpletuner.data.batch_rules, simpletuner.data.position; "
        "sys.exit(bool({'torch', 'av'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
