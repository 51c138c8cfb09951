"""Groups samples of one shape, tells about them, and checks that batches can be filled.

Works on plans only, so the check costs nothing and comes before any weight is loaded. Next stop:
`batches.py`, which draws from these groups.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from simpletuner.core.errors import Problem, UserError
from simpletuner.data.sample import BucketKey, Sample


class LatentGrid(Protocol):
    """The part of a family's grid that turns pixel shapes into latent shapes."""

    def latent_shape(self, width: int, height: int, num_frames: int) -> tuple[int, int, int, int]: ...


def group_by_bucket(samples: Sequence[Sample]) -> dict[BucketKey, tuple[Sample, ...]]:
    """Samples by bucket, buckets in order of their size; the order within a bucket is kept."""
    groups: dict[BucketKey, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.bucket, []).append(sample)
    return {bucket: tuple(groups[bucket]) for bucket in sorted(groups)}


def describe_buckets(samples: Sequence[Sample], grid: LatentGrid, batch_size: int) -> tuple[tuple[str, str], ...]:
    """One (bucket, facts) line per bucket: clips, draws per epoch, latents shape, tokens per clip, batches."""
    lines = []
    for bucket, members in group_by_bucket(samples).items():
        shape = grid.latent_shape(bucket.width, bucket.height, bucket.num_frames)
        draws = draws_per_epoch(members)
        noun = "clip" if bucket.num_frames > 1 else "image"
        repeated = f", drawn {draws} times" if draws != len(members) else ""
        batches = math.ceil(draws / batch_size)
        lines.append(
            (
                str(bucket),
                f"{len(members)} {noun}{'s' if len(members) != 1 else ''}{repeated} · "
                f"latents {'×'.join(map(str, shape))} · {math.prod(shape[1:])} tokens · "
                f"{batches} batch{'es' if batches != 1 else ''}",
            )
        )
    return tuple(lines)


def draws_per_epoch(samples: Sequence[Sample]) -> int:
    """How often samples are drawn in one epoch."""
    return sum(sample.repeats for sample in samples)


def check_buckets(
    samples: Sequence[Sample], batch_size: int, accumulation: int, disable_bucket_pruning: bool
) -> tuple[Sample, ...]:
    """Give the samples that are trained, or refuse a data set that cannot fill its batches.

    A bucket with fewer draws per epoch than one batch is left out (kept when pruning is disabled); the caller
    tells which samples are missing from the answer. Every bucket left must give `batch_size` * `accumulation`
    draws.

    Raises:
        UserError: If nothing is left; or one problem per data set with too small buckets, with the `repeats`
            that fills all of them.
    """
    groups = group_by_bucket(samples)
    if not groups:
        raise UserError(
            "no samples detected in dataset",
            "Training needs at least one usable clip",
            "See the reasons why files were left out",
        )
    pruned = {bucket for bucket, members in groups.items() if draws_per_epoch(members) < batch_size}
    if disable_bucket_pruning or len(pruned) == len(groups):
        pruned = set()
    needed = batch_size * accumulation
    too_small: dict[str, dict[BucketKey, tuple[Sample, ...]]] = {}
    for bucket, members in groups.items():
        if bucket not in pruned and draws_per_epoch(members) < needed:
            too_small.setdefault(_main_dataset(members), {})[bucket] = members
    if too_small:
        spare = [groups[bucket] for bucket in sorted(pruned)]
        raise UserError.of(
            _too_small(dataset, buckets, spare, batch_size, accumulation) for dataset, buckets in too_small.items()
        )
    return tuple(sample for sample in samples if sample.bucket not in pruned)


def _main_dataset(members: Sequence[Sample]) -> str:
    """The data set with most samples in a bucket; its `repeats` is the one to change."""
    return Counter(sample.dataset for sample in members).most_common(1)[0][0]


def _too_small(
    dataset: str,
    buckets: Mapping[BucketKey, Sequence[Sample]],
    pruned: Sequence[Sequence[Sample]],
    batch_size: int,
    accumulation: int,
) -> Problem:
    needed = batch_size * accumulation
    listed = "; ".join(f"bucket {bucket} has {_counted(members)}" for bucket, members in buckets.items())
    repeats = advised_repeats(dataset, list(buckets.values()), pruned, batch_size, needed)
    return Problem(
        f"data set {dataset}: {listed} per epoch",
        f"A bucket needs at least {needed} draws: train_batch_size {batch_size} × "
        f"gradient_accumulation_steps {accumulation}",
        f"Set repeats of {dataset} to {repeats}, lower train_batch_size or gradient_accumulation_steps, or bring "
        "more clips into one bucket with crop",
    )


def _counted(members: Sequence[Sample]) -> str:
    draws = draws_per_epoch(members)
    times = {1: "once", 2: "twice"}.get(draws, f"{draws} times")
    return f"{len(members)} sample{'s' if len(members) != 1 else ''}, drawn {times}"


def advised_repeats(
    dataset: str,
    too_small: Sequence[Sequence[Sample]],
    pruned: Sequence[Sequence[Sample]],
    batch_size: int,
    needed: int,
) -> int:
    """The smallest `repeats` of `dataset` with which all buckets in `too_small` give `needed` draws.

    Higher repeats also bring buckets in `pruned` back to a whole batch; those are then filled as well.
    """
    repeats = max(_repeats_to_fill(dataset, members, needed) for members in too_small)
    while True:
        back = [members for members in pruned if batch_size <= _draws_with(dataset, members, repeats) < needed]
        if not back:
            return repeats
        repeats = max(_repeats_to_fill(dataset, members, needed) for members in back)


def _draws_with(dataset: str, members: Sequence[Sample], repeats: int) -> int:
    return sum(repeats + 1 if sample.dataset == dataset else sample.repeats for sample in members)


def _repeats_to_fill(dataset: str, members: Sequence[Sample], needed: int) -> int:
    """⌈draws the others leave open / samples of `dataset`⌉ − 1."""
    own = sum(sample.dataset == dataset for sample in members)
    others = draws_per_epoch([sample for sample in members if sample.dataset != dataset])
    return math.ceil((needed - others) / own) - 1
