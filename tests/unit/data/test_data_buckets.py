"""Grouping by shape, the table of the story, and the rule on bucket sizes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import pytest

from simpletuner.core.errors import UserError
from simpletuner.data.buckets import check_buckets, describe_buckets, group_by_bucket
from simpletuner.data.sample import BucketKey, Sample

Planned = Callable[..., Sample]


class Grid:
    def latent_shape(self, width: int, height: int, num_frames: int) -> tuple[int, int, int, int]:
        return (128, (num_frames - 1) // 8 + 1, height // 32, width // 32)


def test_groups_are_sorted_and_keep_their_order(planned: Planned) -> None:
    samples = [planned("b", 96), planned("a", 64), planned("c", 96), planned("d", 96, frames=17)]
    groups = group_by_bucket(samples)
    assert [str(bucket) for bucket in groups] == ["64x64@9", "96x64@9", "96x64@17"]
    assert [sample.path for sample in groups[BucketKey(96, 64, 9)]] == ["b", "c"]


def test_table(planned: Planned) -> None:
    samples = [planned("a", 576, 448, 121, repeats=3), planned("b", 64, 64, 1), planned("c", 64, 64, 1)]
    assert describe_buckets(samples, Grid(), 2) == (
        ("64x64@1", "2 images · latents 128×1×2×2 · 4 tokens · 1 batch"),
        ("576x448@121", "1 clip, drawn 3 times · latents 128×16×14×18 · 4032 tokens · 2 batches"),
    )


@pytest.mark.parametrize("clips", range(1, 11))
@pytest.mark.parametrize("repeats", range(9))
def test_too_small_or_enough_and_the_advice_works(planned: Planned, clips: int, repeats: int) -> None:
    """Batch 4, accumulation 2: eight draws are needed."""

    def samples(extra: int) -> list[Sample]:
        return [planned(f"{number}", repeats=extra + 1) for number in range(clips)]

    if clips * (repeats + 1) >= 8:
        assert check_buckets(samples(repeats), 4, 2, True) == tuple(samples(repeats))
        return
    advised = math.ceil(8 / clips) - 1
    with pytest.raises(UserError, match=rf"bucket 64x64@9 .* has {clips} samples.*8 draws.*Set repeats to {advised},"):
        check_buckets(samples(repeats), 4, 2, True)
    check_buckets(samples(advised), 4, 2, True)
    with pytest.raises(UserError):
        check_buckets(samples(advised - 1), 4, 2, True)


def test_all_small_buckets_are_told_at_once(planned: Planned) -> None:
    with pytest.raises(UserError) as caught:
        check_buckets([planned("a"), planned("b", 96)], 2, 1, True)
    assert len(caught.value.problems) == 2


def test_small_buckets_are_pruned_with_a_warning(planned: Planned, caplog: pytest.LogCaptureFixture) -> None:
    samples = [planned("a"), planned("b"), planned("c", 96)]
    with caplog.at_level(logging.WARNING):
        kept = check_buckets(samples, 2, 1, False)
    assert [sample.path for sample in kept] == ["a", "b"]
    assert "bucket 96x64@9 is left out: 1 draws per epoch are less than one batch of 2; repeats 1" in caplog.text
    with pytest.raises(UserError, match="bucket 96x64@9"):
        check_buckets(samples, 2, 1, True)


def test_pruning_never_takes_everything(planned: Planned) -> None:
    with pytest.raises(UserError, match="Set repeats to 3"):
        check_buckets([planned("a")], 4, 1, False)


def test_no_samples() -> None:
    with pytest.raises(UserError, match="no samples detected in dataset"):
        check_buckets([], 1, 1, False)
