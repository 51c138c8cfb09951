"""Grouping by shape, the table of the story, and the rule on bucket sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from simpletuner.core.errors import UserError
from simpletuner.data.batch_rules import BatchRules, SetRules, measure_epoch
from simpletuner.data.buckets import check_buckets, describe_buckets, group_by_bucket
from simpletuner.data.sample import BucketKey, Sample

Planned = Callable[..., Sample]


KEEP = SetRules(keeps_small_buckets=True)


def keeping(batch_size: int, accumulation: int, **given: Any) -> BatchRules:
    """Rules with which the data set `test` keeps its small buckets."""
    return BatchRules(batch_size, accumulation, sets={"test": KEEP, "other": KEEP}, **given)


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
    assert describe_buckets(samples, Grid(), BatchRules(2)) == (
        ("64x64@1", "2 images · latents 128×1×2×2 · 4 tokens · 1 batch of up to 2"),
        ("576x448@121", "1 clip, drawn 3 times · latents 128×16×14×18 · 4032 tokens · 2 batches of up to 2"),
    )


def test_table_with_batches_of_several_sizes(planned: Planned) -> None:
    rules = BatchRules(2, sets={"other": SetRules(batch_size=4)})
    samples = [planned("a"), *(planned(f"{n}", dataset="other") for n in range(5)), planned("b", 96)]
    assert describe_buckets(samples, Grid(), rules) == (
        ("64x64@9", "6 clips · latents 128×2×2×2 · 8 tokens · 2 batches of up to 4 and 1 batch of up to 2"),
        ("96x64@9", "1 clip · latents 128×2×2×3 · 12 tokens · 1 batch of up to 2"),
    )
    budget = BatchRules(token_budget=20, grid=Grid())
    assert [line.rpartition(" · ")[2] for _, line in describe_buckets(samples, Grid(), budget)] == [
        "3 batches of up to 2",
        "1 batch",
    ]


@pytest.mark.parametrize("clips", range(1, 11))
@pytest.mark.parametrize("repeats", range(9))
@pytest.mark.parametrize(
    ("rules", "factors"),
    [
        (keeping(4, 2), "train_batch_size 4 × gradient_accumulation_steps 2"),
        (keeping(2, 1, processes=4), "train_batch_size 2 × gradient_accumulation_steps 1 × 4 processes"),
        (
            BatchRules(1, 4, sets={"test": SetRules(batch_size=2, keeps_small_buckets=True)}),
            "train_batch_size 2 × gradient_accumulation_steps 4",
        ),
        (keeping(1, 8, token_budget=100, grid=Grid()), "1 clip per batch at least × gradient_accumulation_steps 8"),
    ],
)
def test_too_small_or_enough_and_the_advice_works(
    planned: Planned, clips: int, repeats: int, rules: BatchRules, factors: str
) -> None:
    """Batch × accumulation × processes is eight draws."""

    def samples(extra: int) -> list[Sample]:
        return [planned(f"{number}", repeats=extra + 1) for number in range(clips)]

    if clips * (repeats + 1) >= 8:
        assert check_buckets(samples(repeats), rules) == tuple(samples(repeats))
        assert measure_epoch(samples(repeats), rules).draws == clips * (repeats + 1)
        return
    advised = math.ceil(8 / clips) - 1
    with pytest.raises(UserError, match=rf"bucket 64x64@9 has {clips} sample.*8 draws: {factors}. .* to {advised},"):
        check_buckets(samples(repeats), rules)
    check_buckets(samples(advised), rules)
    with pytest.raises(UserError):
        check_buckets(samples(advised - 1), rules)


def test_one_data_set_keeps_its_small_buckets(planned: Planned) -> None:
    samples = [planned("a", dataset="other"), planned("b", 96), *(planned(f"{n}", 128) for n in range(2))]
    assert [sample.path for sample in check_buckets(samples, BatchRules(2))] == ["0", "1"]
    with pytest.raises(UserError, match="data set other: bucket 64x64@9 has 1 sample"):
        check_buckets(samples, BatchRules(2, sets={"other": KEEP}))


def test_who_shares_a_batch(planned: Planned) -> None:
    """Two data sets fill a bucket together unless clips per batch, weight or uniform sampling tell them apart."""
    samples = [planned("a"), planned("b", dataset="other")]
    assert len(check_buckets(samples, BatchRules(2))) == 2
    for apart in (
        BatchRules(2, sampling="uniform"),
        BatchRules(2, sets={"other": SetRules(probability=0.5)}),
        BatchRules(3, sets={"other": SetRules(batch_size=2)}),
    ):
        with pytest.raises(UserError, match="bucket 64x64@9 has 1 sample, drawn once"):
            check_buckets(samples, apart)
    same = BatchRules(3, sets={"test": SetRules(batch_size=2), "other": SetRules(batch_size=2)})
    assert len(check_buckets(samples, same)) == 2


def test_one_error_per_data_set_with_one_advice(planned: Planned) -> None:
    """Three buckets lack draws; the advice for each data set fills all of its buckets."""

    def samples(first: int, second: int) -> list[Sample]:
        one = [planned("a", repeats=first + 1), *(planned(f"b{n}", 96, repeats=first + 1) for n in range(2))]
        return [*one, planned("c", 128, repeats=second + 1, dataset="other")]

    with pytest.raises(UserError) as caught:
        check_buckets(samples(0, 1), keeping(2, 2))
    first, second = caught.value.problems
    assert first.what == (
        "data set test: bucket 64x64@9 has 1 sample, drawn once; bucket 96x64@9 has 2 samples, drawn twice per epoch"
    )
    assert first.rule == "A bucket needs at least 4 draws: train_batch_size 2 × gradient_accumulation_steps 2"
    assert first.fix.startswith("Set repeats of test to 3, lower train_batch_size")
    assert second.what == "data set other: bucket 128x64@9 has 1 sample, drawn twice per epoch"
    assert second.fix.startswith("Set repeats of other to 3,")
    assert check_buckets(samples(3, 3), keeping(2, 2)) == tuple(samples(3, 3))


def test_the_advice_also_fills_buckets_it_brings_back(planned: Planned) -> None:
    """`b` alone is pruned; the repeats that four clips need would bring it back with too few draws."""

    def samples(repeats: int) -> list[Sample]:
        return [planned("b", 96, repeats=repeats + 1), *(planned(f"a{n}", repeats=repeats + 1) for n in range(4))]

    with pytest.raises(UserError, match="Set repeats of test to 7,"):
        check_buckets(samples(0), BatchRules(2, 4))
    check_buckets(samples(7), BatchRules(2, 4))
    with pytest.raises(UserError, match="bucket 96x64@9 has 1 sample, drawn twice per epoch"):
        check_buckets(samples(1), BatchRules(2, 4))


def test_a_bucket_of_two_data_sets_is_told_once(planned: Planned) -> None:
    """Seven of eight draws are there; one more of the two samples of `test` each fills the bucket."""
    samples = [planned("a"), planned("b"), planned("c", repeats=5, dataset="other")]
    with pytest.raises(UserError, match=r"data set test: .* Set repeats of test to 1,") as caught:
        check_buckets(samples, keeping(4, 2))
    assert len(caught.value.problems) == 1


def test_small_buckets_are_pruned_without_a_second_message(planned: Planned, caplog: pytest.LogCaptureFixture) -> None:
    """The story tells which samples are missing; see `recipes/story.py`."""
    samples = [planned("a"), planned("b"), planned("c", 96)]
    assert [sample.path for sample in check_buckets(samples, BatchRules(2, 1))] == ["a", "b"]
    assert caplog.text == ""
    with pytest.raises(UserError, match="bucket 96x64@9"):
        check_buckets(samples, keeping(2, 1))


def test_pruning_never_takes_everything(planned: Planned) -> None:
    with pytest.raises(UserError, match="Set repeats of test to 3"):
        check_buckets([planned("a")], BatchRules(4, 1))


def test_no_samples() -> None:
    with pytest.raises(UserError, match="no samples detected in dataset"):
        check_buckets([], BatchRules(1, 1))
