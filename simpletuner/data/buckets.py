"""Groups samples of one shape, tells about them, and checks that batches can be filled.

Works on plans only, so the check costs nothing and comes before any weight is loaded. Next stop:
`batches.py`, which draws from these groups.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Protocol

from simpletuner.core.errors import Problem, UserError
from simpletuner.data.sample import BucketKey, Sample

logger = logging.getLogger(__name__)


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


def advised_repeats(clips: int, needed: int) -> int:
    """The smallest `repeats` with which `clips` samples give `needed` draws: ⌈needed / clips⌉ − 1."""
    return max(0, math.ceil(needed / clips) - 1)


def check_buckets(
    samples: Sequence[Sample], batch_size: int, accumulation: int, disable_bucket_pruning: bool
) -> tuple[Sample, ...]:
    """Give the samples that are trained, or refuse a data set that cannot fill its batches.

    A bucket with fewer draws per epoch than one batch is left out with a warning (kept when pruning
    is disabled). Every bucket left must give `batch_size` * `accumulation` draws.

    Raises:
        UserError: If nothing is left, or for each bucket that is too small, with the `repeats` that help.
    """
    groups = group_by_bucket(samples)
    if not groups:
        raise UserError(
            "no samples detected in dataset",
            "Training needs at least one usable clip",
            "See the reasons why files were left out",
        )
    needed = batch_size * accumulation
    small = {bucket: members for bucket, members in groups.items() if draws_per_epoch(members) < batch_size}
    if small and not disable_bucket_pruning and len(small) < len(groups):
        for bucket, members in small.items():
            logger.warning(
                "bucket %s is left out: %s draws per epoch are less than one batch of %s; repeats %s would keep it",
                bucket,
                draws_per_epoch(members),
                batch_size,
                advised_repeats(len(members), needed),
            )
        groups = {bucket: members for bucket, members in groups.items() if bucket not in small}
    problems = [
        _too_small(bucket, members, batch_size, accumulation)
        for bucket, members in groups.items()
        if draws_per_epoch(members) < needed
    ]
    if problems:
        raise UserError.of(problems)
    return tuple(sample for sample in samples if sample.bucket in groups)


def _too_small(bucket: BucketKey, members: Sequence[Sample], batch_size: int, accumulation: int) -> Problem:
    needed = batch_size * accumulation
    names = ", ".join(sorted({sample.dataset for sample in members}))
    draws = draws_per_epoch(members)
    return Problem(
        f"bucket {bucket} of data set {names} has {len(members)} samples, drawn {draws} times per epoch",
        f"It needs at least {needed} draws: train_batch_size {batch_size} × gradient_accumulation_steps {accumulation}",
        f"Set repeats to {advised_repeats(len(members), needed)}, lower train_batch_size or "
        "gradient_accumulation_steps, or bring more clips into one bucket with crop",
    )
