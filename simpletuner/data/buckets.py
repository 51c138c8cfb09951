"""Tells about the groups of samples that share batches, and checks that their batches can be filled.

Works on plans only, so the check costs nothing and comes before any weight is loaded. What can be done
for a group that is too small is in `tails.py`. Next stop: `batches.py`, which draws from these groups.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from simpletuner.core.errors import Problem, UserError
from simpletuner.data.batch_rules import BatchRules, Group, LatentGrid, group_samples
from simpletuner.data.sample import BucketKey, Sample


def group_by_bucket(samples: Sequence[Sample]) -> dict[BucketKey, tuple[Sample, ...]]:
    """Samples by bucket, buckets in order of their size; the order within a bucket is kept."""
    groups: dict[BucketKey, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.bucket, []).append(sample)
    return {bucket: tuple(groups[bucket]) for bucket in sorted(groups)}


def draws_per_epoch(samples: Sequence[Sample]) -> int:
    """How often samples are drawn in one epoch."""
    return sum(sample.repeats for sample in samples)


# Telling ----------------------------------------------------------------------------------------


def describe_buckets(samples: Sequence[Sample], grid: LatentGrid, rules: BatchRules) -> tuple[tuple[str, str], ...]:
    """One (bucket, facts) line per bucket: clips, draws per epoch, latents shape, tokens per clip, batches."""
    groups: dict[BucketKey, list[Group]] = {}
    for group in group_samples(samples, rules):
        groups.setdefault(group.bucket, []).append(group)
    return tuple((str(bucket), _describe(bucket, groups[bucket], grid)) for bucket in groups)


def _describe(bucket: BucketKey, groups: Sequence[Group], grid: LatentGrid) -> str:
    shape = grid.latent_shape(bucket.width, bucket.height, bucket.num_frames)
    clips = sum(len(group.members) for group in groups)
    draws = sum(draws_per_epoch(group.members) for group in groups)
    noun = "clip" if bucket.num_frames > 1 else "image"
    repeated = f", drawn {draws} times" if draws != clips else ""
    batches: Counter[int] = Counter()
    for group in groups:
        batches[group.capacity] += math.ceil(draws_per_epoch(group.members) / group.capacity)
    limits = {
        capacity: f" of up to {capacity}" if capacity > 1 else " of 1" * (len(batches) > 1) for capacity in batches
    }
    told = " and ".join(
        f"{count} batch{'es' if count != 1 else ''}{limits[capacity]}"
        for capacity, count in sorted(batches.items(), reverse=True)
    )
    return (
        f"{clips} {noun}{'s' if clips != 1 else ''}{repeated} · latents {'×'.join(map(str, shape))} · "
        f"{math.prod(shape[1:])} tokens · {told}"
    )


# Checking ---------------------------------------------------------------------------------------


def check_buckets(samples: Sequence[Sample], rules: BatchRules) -> tuple[Sample, ...]:
    """Give the samples that are trained, or refuse a data set that cannot fill its batches.

    A group (a bucket, where no data set has batches of its own) with fewer draws per epoch than one batch is left
    out, unless a data set keeps its small buckets; the caller tells which samples are missing from the answer.
    Every group left must give the draws of one step of all processes.

    Raises:
        UserError: If nothing is left; or one problem per data set with too small buckets, with the `repeats`
            that fills all of them.
    """
    groups = group_samples(samples, rules)
    if not groups:
        raise UserError(
            "no samples detected in dataset",
            "Training needs at least one usable clip",
            "See the reasons why files were left out",
        )
    pruned = [group for group in groups if draws_per_epoch(group.members) < group.least and not group.is_kept]
    if len(pruned) == len(groups):
        pruned = []
    too_small: dict[str, list[Group]] = {}
    for group in groups:
        if group not in pruned and draws_per_epoch(group.members) < needed_draws(group, rules):
            too_small.setdefault(_main_dataset(group.members), []).append(group)
    if too_small:
        raise UserError.of(_too_small(dataset, small, pruned, rules) for dataset, small in too_small.items())
    lost = {id(sample) for group in pruned for sample in group.members}
    return tuple(sample for sample in samples if id(sample) not in lost)


def needed_draws(group: Group, rules: BatchRules) -> int:
    """Draws per epoch with which a group fills one optimizer step of all processes."""
    return group.least * rules.batches_per_step


def _main_dataset(members: Sequence[Sample]) -> str:
    """The data set with most samples in a group; its `repeats` is the one to change."""
    return Counter(sample.dataset for sample in members).most_common(1)[0][0]


def _too_small(dataset: str, small: Sequence[Group], pruned: Sequence[Group], rules: BatchRules) -> Problem:
    needed = sorted({needed_draws(group, rules) for group in small})
    listed = "; ".join(f"bucket {group.bucket} has {_counted(group.members)}" for group in small)
    factors = [
        "1 clip per batch at least"
        if rules.token_budget is not None
        else f"train_batch_size {' or '.join(str(least) for least in sorted({group.least for group in small}))}",
        f"gradient_accumulation_steps {rules.accumulation}",
        *([f"{rules.processes} processes"] if rules.processes > 1 else []),
    ]
    lower = ["gradient_accumulation_steps"] if rules.token_budget else ["train_batch_size", factors[1].split()[0]]
    return Problem(
        f"data set {dataset}: {listed} per epoch",
        f"A bucket needs at least {' or '.join(map(str, needed))} draws: {' × '.join(factors)}",
        f"Set repeats of {dataset} to {advised_repeats(dataset, small, pruned, rules)}, lower {' or '.join(lower)}, "
        "or bring more clips into one bucket with crop or bucket_tail merge",
    )


def _counted(members: Sequence[Sample]) -> str:
    draws = draws_per_epoch(members)
    times = {1: "once", 2: "twice"}.get(draws, f"{draws} times")
    return f"{len(members)} sample{'s' if len(members) != 1 else ''}, drawn {times}"


def advised_repeats(dataset: str, small: Sequence[Group], pruned: Sequence[Group], rules: BatchRules) -> int:
    """The smallest `repeats` of `dataset` with which all groups in `small` give the draws they need.

    Higher repeats also bring groups in `pruned` back to a whole batch; those are then filled as well.
    """
    repeats = max(repeats_to_fill(dataset, group.members, needed_draws(group, rules)) for group in small)
    while True:
        back = [
            group
            for group in pruned
            if group.least <= _draws_with(dataset, group.members, repeats) < needed_draws(group, rules)
        ]
        if not back:
            return repeats
        repeats = max(repeats_to_fill(dataset, group.members, needed_draws(group, rules)) for group in back)


def _draws_with(dataset: str, members: Sequence[Sample], repeats: int) -> int:
    return sum(repeats + 1 if sample.dataset == dataset else sample.repeats for sample in members)


def repeats_to_fill(dataset: str, members: Sequence[Sample], needed: int) -> int:
    """⌈draws the others leave open / samples of `dataset`⌉ − 1."""
    own = sum(sample.dataset == dataset for sample in members)
    others = draws_per_epoch([sample for sample in members if sample.dataset != dataset])
    return math.ceil((needed - others) / own) - 1
