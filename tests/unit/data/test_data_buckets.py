"""Grouping by shape, the table of the story, and the rule on bucket sizes."""

from __future__ import annotations

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
    with pytest.raises(UserError, match=rf"bucket 64x64@9 has {clips} sample.*8 draws.* to {advised},"):
        check_buckets(samples(repeats), 4, 2, True)
    check_buckets(samples(advised), 4, 2, True)
    with pytest.raises(UserError):
        check_buckets(samples(advised - 1), 4, 2, True)


def test_one_error_per_data_set_with_one_advice(planned: Planned) -> None:
    """Three buckets lack draws; the advice for each data set fills all of its buckets."""

    def samples(first: int, second: int) -> list[Sample]:
        one = [planned("a", repeats=first + 1), *(planned(f"b{n}", 96, repeats=first + 1) for n in range(2))]
        return [*one, planned("c", 128, repeats=second + 1, dataset="other")]

    with pytest.raises(UserError) as caught:
        check_buckets(samples(0, 1), 2, 2, True)
    first, second = caught.value.problems
    assert first.what == (
        "data set test: bucket 64x64@9 has 1 sample, drawn once; bucket 96x64@9 has 2 samples, drawn twice per epoch"
    )
    assert first.rule == "A bucket needs at least 4 draws: train_batch_size 2 × gradient_accumulation_steps 2"
    assert first.fix.startswith("Set repeats of test to 3, lower train_batch_size")
    assert second.what == "data set other: bucket 128x64@9 has 1 sample, drawn twice per epoch"
    assert second.fix.startswith("Set repeats of other to 3,")
    assert check_buckets(samples(3, 3), 2, 2, True) == tuple(samples(3, 3))


def test_the_advice_also_fills_buckets_it_brings_back(planned: Planned) -> None:
    """`b` alone is pruned; the repeats that four clips need would bring it back with too few draws."""

    def samples(repeats: int) -> list[Sample]:
        return [planned("b", 96, repeats=repeats + 1), *(planned(f"a{n}", repeats=repeats + 1) for n in range(4))]

    with pytest.raises(UserError, match="Set repeats of test to 7,"):
        check_buckets(samples(0), 2, 4, False)
    check_buckets(samples(7), 2, 4, False)
    with pytest.raises(UserError, match="bucket 96x64@9 has 1 sample, drawn twice per epoch"):
        check_buckets(samples(1), 2, 4, False)


def test_a_bucket_of_two_data_sets_is_told_once(planned: Planned) -> None:
    """Seven of eight draws are there; one more of the two samples of `test` each fills the bucket."""
    samples = [planned("a"), planned("b"), planned("c", repeats=5, dataset="other")]
    with pytest.raises(UserError, match=r"data set test: .* Set repeats of test to 1,") as caught:
        check_buckets(samples, 4, 2, True)
    assert len(caught.value.problems) == 1


def test_small_buckets_are_pruned_without_a_second_message(planned: Planned, caplog: pytest.LogCaptureFixture) -> None:
    """The story tells which samples are missing; see `recipes/story.py`."""
    samples = [planned("a"), planned("b"), planned("c", 96)]
    assert [sample.path for sample in check_buckets(samples, 2, 1, False)] == ["a", "b"]
    assert caplog.text == ""
    with pytest.raises(UserError, match="bucket 96x64@9"):
        check_buckets(samples, 2, 1, True)


def test_pruning_never_takes_everything(planned: Planned) -> None:
    with pytest.raises(UserError, match="Set repeats of test to 3"):
        check_buckets([planned("a")], 4, 1, False)


def test_no_samples() -> None:
    with pytest.raises(UserError, match="no samples detected in dataset"):
        check_buckets([], 1, 1, False)
