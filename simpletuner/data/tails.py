"""What is done for buckets that are too small, before anything is encoded: merge, repeat, leave out.

Each change is told in a note. Nothing is drawn and no file is opened; an option asks for each of these
except leaving out. Next stop: `caching/`, which encodes what is left.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from simpletuner.config.dataset import ClipDataset
from simpletuner.data.batch_rules import BatchRules, group_samples
from simpletuner.data.buckets import check_buckets, draws_per_epoch, needed_draws
from simpletuner.data.geometry import cover, refuse_enlarged
from simpletuner.data.sample import BucketKey, CropPlan, Sample, Unfit

Place = tuple[str, BucketKey]  # a bucket of one data set


@dataclass(frozen=True)
class BucketPlan:
    """Samples whose buckets fill their batches.

    Attributes:
        samples: What is trained, in the order in which it was found.
        notes: Sentences about what was changed to get there.
    """

    samples: tuple[Sample, ...]
    notes: tuple[str, ...]


def fill_buckets(samples: Sequence[Sample], rules: BatchRules, datasets: Mapping[str, ClipDataset]) -> BucketPlan:
    """Merge small buckets and raise repeats where options ask for it, leave out what is still too small.

    Args:
        samples: What was found.
        rules: How draws become batches.
        datasets: The entries by id; they say how a picture is cut.
    Raises:
        UserError: If a bucket that stays cannot fill a step, see `check_buckets`.
    """
    plan = BucketPlan(tuple(samples), ())
    if rules.merges_tails:
        plan = merge_tails(plan.samples, rules, datasets)
    repeated = raise_repeats(plan.samples, rules)
    return BucketPlan(check_buckets(repeated.samples, rules), (*plan.notes, *repeated.notes))


# Merging ----------------------------------------------------------------------------------------


def merge_tails(samples: Sequence[Sample], rules: BatchRules, datasets: Mapping[str, ClipDataset]) -> BucketPlan:
    """Cut the samples of buckets that cannot fill one batch to the size of their nearest neighbour.

    Neighbours belong to the same data set and have the same number of frames; the nearest is the one whose shape
    differs least by ratio. The smallest bucket moves first, so that two small neighbours may fill each other.
    Samples without a neighbour stay.
    """
    moved = _plan_moves(samples, rules)
    shown: dict[Place, list[float]] = defaultdict(list)  # parts of the pictures that are left
    merged: list[Sample] = []
    for sample in samples:
        place = (sample.dataset, sample.bucket)
        crop = _recut(sample, moved[place], datasets[sample.dataset]) if place in moved else None
        if crop is None:
            merged.append(sample)
            continue
        merged.append(replace(sample, crop=crop))
        shown[place].append(crop.width * crop.height / (crop.scaled_width * crop.scaled_height))
    return BucketPlan(
        tuple(merged), tuple(_note_on_merge(place, moved[place], parts) for place, parts in shown.items())
    )


def _note_on_merge(place: Place, target: BucketKey, shown: Sequence[float]) -> str:
    dataset, bucket = place
    return (
        f"{dataset}: bucket {bucket} ({len(shown)} sample{'s' if len(shown) != 1 else ''}) cannot fill a batch and is "
        f"trained as {target}: {1 - min(shown):.0%} of the picture is cut off at most"
    )


def _recut(sample: Sample, target: BucketKey, dataset: ClipDataset) -> CropPlan | None:
    """The cut of `sample` to the size of `target`; None if it would be enlarged more than its data set allows."""
    width, height, size = sample.info.width, sample.info.height, (target.width, target.height)
    try:
        refuse_enlarged(width, height, size, dataset.max_upscale_threshold)
    except Unfit:
        return None
    return cover(width, height, size, dataset, sample.name)


def _plan_moves(samples: Sequence[Sample], rules: BatchRules) -> dict[Place, BucketKey]:
    """Bucket of a data set -> the bucket it joins."""
    draws: dict[Place, int] = defaultdict(int)
    for sample in samples:
        draws[sample.dataset, sample.bucket] += sample.repeats
    groups = {place: (rules.group(*place), rules.capacity(*place)) for place in draws}
    joined: dict[Place, BucketKey] = {}
    stuck: set[Place] = set()
    while True:
        short = [place for place in _find_short(draws, groups) if place not in stuck]
        if not short:
            break
        place = min(short, key=lambda place: (draws[place], place))
        target = _nearest(place, draws)
        if target is None:
            stuck.add(place)
            continue
        joined[place] = target
        draws[place[0], target] += draws.pop(place)
    return {place: _end_of_way(place, joined) for place in joined}


def _find_short(draws: Mapping[Place, int], groups: Mapping[Place, tuple[Hashable, int]]) -> list[Place]:
    """Buckets whose group, over all data sets that share it, has fewer draws than the batch it gives."""
    of_group: dict[Hashable, int] = defaultdict(int)
    for place, count in draws.items():
        of_group[groups[place][0]] += count
    return [place for place in draws if of_group[groups[place][0]] < groups[place][1]]


def _nearest(place: Place, draws: Mapping[Place, int]) -> BucketKey | None:
    dataset, bucket = place
    others = [
        other
        for owner, other in draws
        if owner == dataset and other != bucket and other.num_frames == bucket.num_frames
    ]
    aspect, area = bucket.width / bucket.height, bucket.width * bucket.height

    def distance(other: BucketKey) -> tuple[float, float, BucketKey]:
        turned = abs(math.log(other.width / other.height / aspect))
        return turned, abs(math.log(other.width * other.height / area)), other

    return min(others, key=distance, default=None)


def _end_of_way(place: Place, joined: Mapping[Place, BucketKey]) -> BucketKey:
    target = joined[place]
    while (place[0], target) in joined:
        target = joined[place[0], target]
    return target


# Repeats ----------------------------------------------------------------------------------------


def raise_repeats(samples: Sequence[Sample], rules: BatchRules) -> BucketPlan:
    """Draw the samples of buckets that cannot fill a step more often, where their data set allows it.

    Only samples in those buckets are drawn more often, as little as it takes.
    """
    raised: dict[int, int] = {}
    notes = []
    for group in group_samples(samples, rules):
        free = [sample for sample in group.members if rules.of(sample.dataset).may_repeat_more]
        missing = needed_draws(group, rules) - draws_per_epoch(group.members)
        if missing <= 0 or not free:
            continue
        times = math.ceil((missing + draws_per_epoch(free)) / len(free))
        raised.update((id(sample), times) for sample in free)
        owners = ", ".join(dict.fromkeys(sample.dataset for sample in free))
        notes.append(
            f"{owners}: {len(free)} sample{'s' if len(free) != 1 else ''} of bucket {group.bucket} "
            f"{'are' if len(free) != 1 else 'is'} drawn {times} times per epoch, so that the bucket gives the "
            f"{needed_draws(group, rules)} draws of a step (allow_dataset_oversubscription)"
        )
    lifted = (replace(s, repeats=raised[id(s)]) if id(s) in raised else s for s in samples)
    return BucketPlan(tuple(lifted), tuple(notes))
