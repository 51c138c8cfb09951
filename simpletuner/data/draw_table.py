"""From samples and rules to the table of draws that `order.py` shuffles and cuts."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import numpy as np

from simpletuner.data.batch_rules import BatchRules
from simpletuner.data.order import DrawTable
from simpletuner.data.sample import Sample


def tabulate(samples: Sequence[Sample], rules: BatchRules) -> DrawTable:
    """The draws of one epoch over `samples`, each as often as its `repeats` say."""
    sets: dict[str, int] = {}
    groups: dict[Hashable, int] = {}
    capacity: list[int] = []
    known: dict[tuple[str, int, int, int], int] = {}  # few; spares building a key object per sample
    group_of: list[int] = []
    set_of: list[int] = []
    for sample in samples:
        shape = (sample.dataset, sample.crop.width, sample.crop.height, sample.frames.num_frames)
        group = known.get(shape)
        if group is None:
            bucket = sample.bucket
            group = known[shape] = groups.setdefault(rules.group(sample.dataset, bucket), len(groups))
            if group == len(capacity):
                capacity.append(rules.capacity(sample.dataset, bucket))
        group_of.append(group)
        set_of.append(sets.setdefault(sample.dataset, len(sets)))
    draws = np.repeat(np.arange(len(samples)), [sample.repeats for sample in samples])
    return DrawTable(
        samples=draws,
        groups=np.array(group_of, dtype=np.int64)[draws],
        capacity=np.array(capacity, dtype=np.int64),
        sets=np.array(set_of, dtype=np.int64)[draws],
        weights=np.array([rules.of(dataset).probability for dataset in sets], dtype=np.float64),
        by_set=rules.sampling == "uniform",
    )


def restrict(table: DrawTable, sets: Collection[int]) -> DrawTable:
    """The draws of some of the data sets alone; sets and groups are numbered anew, in the same order.

    Args:
        table: The draws of all.
        sets: Numbers of the data sets that stay; none of them may share a group with one that goes.
    """
    if len(sets) == len(table.weights):
        return table
    kept = np.isin(table.sets, sorted(sets))
    names, own_sets = np.unique(table.sets[kept], return_inverse=True)
    groups, own_groups = np.unique(table.groups[kept], return_inverse=True)
    return DrawTable(
        samples=table.samples[kept],
        groups=own_groups,
        capacity=table.capacity[groups],
        sets=own_sets,
        weights=table.weights[names],
        by_set=table.by_set,
    )
