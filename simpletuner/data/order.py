"""The order of an epoch, and how it is cut into batches and steps: numbers in, arrays out.

Everything follows from the seed, the epoch and a `DrawTable`, on any machine and with any number of
processes; no file is read and torch is not needed, so that a plan can be told before anything is
loaded. A draw is one use of one sample; its place in the epoch's order is its number for all random
choices. Next stop: `batches.py`, which reads what is planned here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simpletuner.runtime.seeds import stream_seed

Places = NDArray[np.int64]
Weights = NDArray[np.float64]

MANTISSA_BITS = 53  # of a double


@dataclass(frozen=True)
class DrawTable:
    """The draws of one epoch before they are ordered, sample after sample.

    Attributes:
        samples: [N] number of the sample of each draw.
        groups: [N] number of the group of each draw; only draws of one group share a batch.
        capacity: [G] most draws in one batch of each group, at least 1.
        sets: [N] number of the data set of each draw.
        weights: [S] weight of each data set, above 0.
        by_set: Whether the next batch's data set is drawn by `weights` alone, whatever the sizes of the data
            sets ("uniform"); otherwise each draw left counts by its set's weight ("auto-weighting").
    """

    samples: Places
    groups: Places
    capacity: Places
    sets: Places
    weights: Weights
    by_set: bool = False


@dataclass(frozen=True)
class Cut:
    """Batches of an epoch in the order in which they are trained.

    Attributes:
        places: [N] places in the epoch's order, batch after batch.
        starts: [batches + 1] where each batch begins in `places`; also the draws trained before it.
    """

    places: Places
    starts: Places

    def batch(self, number: int) -> Places:
        """The places of batch `number`."""
        return self.places[self.starts[number] : self.starts[number + 1]]


@dataclass(frozen=True)
class BatchPlan:
    """One batch of one process before anything is read.

    Attributes:
        positions: Places of its draws in the epoch's order.
        share: Part of the step's draws, over all processes, that this batch holds; 0 for a filler.
        ends_step: Whether it is the last of its step.
    """

    positions: Places
    share: float
    ends_step: bool


# Order ------------------------------------------------------------------------------------------


def order_epoch(table: DrawTable, seed: int, epoch: int) -> Places:
    """[N] draws in the order of `epoch` (from 1), the same on every machine.

    With equal weights it is a uniform permutation. With other weights the next draw is each of those left
    with a chance in proportion to its set's weight; with `by_set` the next *batch* belongs to each data set
    that has draws left with a chance in proportion to its weight. No draw is ever lost or repeated.

    Source: sorting by an exponential variate over the weight gives draws without replacement in
    proportion to the weight (Efraimidis and Spirakis 2006, doi 10.1016/j.ipl.2005.11.003).
    """
    bits = _random_bits(len(table.samples), seed, "epoch-order", epoch)
    if table.by_set and len(table.weights) > 1:
        return _merge_sets(table, np.argsort(bits, kind="stable"), seed, epoch)
    if (table.weights == table.weights[0]).all():
        return np.argsort(bits, kind="stable")
    return np.argsort(_exponential(bits) / table.weights[table.sets], kind="stable")


def _merge_sets(table: DrawTable, shuffled: Places, seed: int, epoch: int) -> Places:
    """Let the draws of each data set arrive at its weight, counted in batches, until it has none left.

    Independent arrivals with rates w1, w2, … are what "the next one is of set i with chance wi / sum of the
    weights of those left" means; a draw is 1 / capacity of a batch.
    """
    by_set = shuffled[np.argsort(table.sets[shuffled], kind="stable")]
    sets = table.sets[by_set]
    waiting = _exponential(_random_bits(len(shuffled), seed, "set-order", epoch))
    times = np.cumsum(waiting / (table.weights[sets] * table.capacity[table.groups[by_set]]))
    first = np.searchsorted(sets, np.arange(len(table.weights)))
    begins = np.concatenate([[0.0], times])[first]
    return by_set[np.argsort(times - begins[sets], kind="stable")]


def _random_bits(count: int, seed: int, stream: str, number: int) -> NDArray[np.uint64]:
    # Raw bits are the part of NumPy's generators that no release may change.
    return np.random.Philox(key=stream_seed(seed, stream, number)).random_raw(count)


def _exponential(bits: NDArray[np.uint64]) -> Weights:
    uniform = ((bits >> np.uint64(64 - MANTISSA_BITS)).astype(np.float64) + 1) * 2.0**-MANTISSA_BITS  # in (0, 1]
    return -np.log(uniform)


# Batches ----------------------------------------------------------------------------------------


def cut_batches(groups: Places, capacity: Places) -> Cut:
    """Cut an epoch's draws into batches of one group.

    Within a group draws keep their order, and batches stand where their first draw stands: groups mix as the
    draws do, and with one group a step of 2 batches of 2 trains what one batch of 4 does. The last batch of a
    group may be smaller; no draw is lost or repeated.

    Args:
        groups: [N] number of the group of each draw, in the epoch's order.
        capacity: [G] most draws in one batch of each group.
    """
    by_group = np.argsort(groups, kind="stable")
    ordered = groups[by_group]
    first = np.searchsorted(ordered, np.arange(len(capacity)))
    within = np.arange(len(groups)) - first[ordered]
    heads = np.flatnonzero(within % capacity[ordered] == 0)
    sizes = np.diff(np.append(heads, len(groups)))
    trained = np.argsort(by_group[heads])
    starts = np.concatenate([[0], np.cumsum(sizes[trained])])
    shifts = np.repeat(heads[trained] - starts[:-1], sizes[trained])
    return Cut(by_group[np.arange(len(groups)) + shifts], starts)


# Steps ------------------------------------------------------------------------------------------


def plan_steps(
    cut: Cut, accumulation: int, processes: int, process_index: int, first: int = 0
) -> Iterator[list[BatchPlan]]:
    """What one process does in each step from batch `first` on.

    A step is the next `accumulation` * `processes` batches, dealt out in turn, so that the number of processes
    does not change which draws a step holds: two processes train what one with twice the accumulation does.
    The last step may hold fewer batches; see `share_out`.

    Yields:
        The process's micro-batches of one step: as many as every other process has, at least one.
    """
    batches = len(cut.starts) - 1
    for start in range(first, batches, accumulation * processes):
        step = [cut.batch(number) for number in range(start, min(start + accumulation * processes, batches))]
        draws = sum(len(places) for places in step)
        dealt = share_out(step, processes)
        own = dealt[process_index::processes]
        yield [
            BatchPlan(places, len(places) / draws if counts else 0.0, number == len(own) - 1)
            for number, (places, counts) in enumerate(own)
        ]


def share_out(step: Sequence[Places], processes: int) -> list[tuple[Places, bool]]:
    """Give all processes the same number of micro-batches: (places, whether they count), dealt out in turn.

    Where batches are missing, the largest are halved. Where there are fewer draws than processes, what is left
    open is filled with one draw of the step once more, which does not count (share 0): processes that exchange
    gradients must all take part, and no draw is trained twice.
    """
    parts = list(step)
    wanted = -(-len(parts) // processes) * processes
    while len(parts) < wanted:
        largest = max(range(len(parts)), key=lambda number: len(parts[number]))
        places = parts[largest]
        if len(places) == 1:
            break
        half = (len(places) + 1) // 2
        parts[largest : largest + 1] = [places[:half], places[half:]]
    # A filler costs no more than its neighbour of the same round, on which its process would wait anyway.
    filler = parts[wanted - processes][:1]
    return [(places, True) for places in parts] + [(filler, False)] * (wanted - len(parts))
