"""What becomes of buckets that are too small: merged into a neighbour, repeated, or left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simpletuner.config.catalogs.families import Grid
from simpletuner.config.dataset import ClipDataset
from simpletuner.config.sections.data import DataSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.core.errors import UserError
from simpletuner.data.batch_rules import BatchRules, SetRules, group_samples, measure_epoch
from simpletuner.data.buckets import draws_per_epoch
from simpletuner.data.geometry import plan_crop
from simpletuner.data.sample import Sample
from simpletuner.data.tails import fill_buckets, merge_tails, raise_repeats

Planned = Callable[..., Sample]
Entry = Callable[..., ClipDataset]
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LTX_GRID = Grid(spatial=32, temporal=8, channels=128)


@pytest.fixture
def cut(planned: Planned, clip_dataset: Entry) -> Callable[..., Sample]:
    """sample(name, width, height, …): a clip of that source size as its data set cuts it."""

    def build(name: str, width: int, height: int, dataset: ClipDataset | None = None, **facts: object) -> Sample:
        entry = dataset or clip_dataset(resolution=256)
        sample = planned(name, width, height, dataset=entry.id, **facts)
        return replace(sample, crop=plan_crop(width, height, entry, 32, name))

    return build


def buckets_of(samples: tuple[Sample, ...]) -> dict[str, int]:
    return dict(Counter(str(sample.bucket) for sample in samples))


def test_a_small_bucket_joins_its_nearest_neighbour(cut: Callable[..., Sample], clip_dataset: Entry) -> None:
    wide = [cut(f"w{n}", 1920, 1080) for n in range(4)]
    tall = [cut(f"t{n}", 1080, 1920) for n in range(4)]
    rare = [cut("r", 1440, 1080)]  # 4:3 is nearer to 16:9 than to 9:16
    samples = (*wide, *rare, *tall)
    assert buckets_of(samples) == {"448x256@9": 4, "352x256@9": 1, "256x448@9": 4}
    plan = merge_tails(samples, BatchRules(4), {"test": clip_dataset(resolution=256)})
    assert buckets_of(plan.samples) == {"448x256@9": 5, "256x448@9": 4}
    assert [sample.path for sample in plan.samples] == [sample.path for sample in samples]
    crop = plan.samples[4].crop
    assert (crop.scaled_width, crop.scaled_height) == (448, 336)  # covers, and keeps 4:3
    assert (crop.left, crop.top) == (0, 40)
    assert plan.notes == (
        "test: bucket 352x256@9 (1 sample) cannot fill a batch and is trained as 448x256@9: 24% of the picture is "
        "cut off at most",
    )


def test_frame_counts_and_data_sets_never_mix(cut: Callable[..., Sample], clip_dataset: Entry) -> None:
    other = clip_dataset(resolution=256, id="other")
    samples = (
        *(cut(f"w{n}", 1920, 1080) for n in range(4)),
        cut("long", 1440, 1080, frames=17),
        cut("theirs", 1440, 1080, dataset=other),
    )
    plan = merge_tails(samples, BatchRules(4), {"test": clip_dataset(resolution=256), "other": other})
    assert plan.samples == samples
    assert plan.notes == ()


def test_two_small_neighbours_fill_each_other(cut: Callable[..., Sample], clip_dataset: Entry) -> None:
    samples = (
        *(cut(f"a{n}", 1440, 1080) for n in range(2)),
        *(cut(f"b{n}", 1620, 1080) for n in range(2)),
        *(cut(f"c{n}", 1080, 1920) for n in range(4)),
    )
    plan = merge_tails(samples, BatchRules(4), {"test": clip_dataset(resolution=256)})
    assert sorted(buckets_of(plan.samples).values()) == [4, 4]
    assert len(plan.notes) == 1


def test_merging_keeps_the_limit_on_enlargement(cut: Callable[..., Sample], clip_dataset: Entry) -> None:
    strict = clip_dataset(resolution=256, max_upscale_threshold=0.0)
    samples = (*(cut(f"w{n}", 1920, 1080) for n in range(4)), cut("small", 352, 256))
    plan = merge_tails(samples, BatchRules(4), {"test": strict})
    assert plan.samples == samples


sources = st.lists(
    st.tuples(st.integers(200, 2000), st.integers(200, 2000), st.sampled_from([9, 17]), st.integers(0, 1)),
    min_size=1, max_size=14,
)  # fmt: skip


@given(sources, st.integers(1, 5))
@quick
def test_after_merging_only_what_has_no_neighbour_is_small(
    cut: Callable[..., Sample], clip_dataset: Entry, sources: list[tuple[int, int, int, int]], batch_size: int
) -> None:
    entries = {f"set{n}": clip_dataset(resolution=256, id=f"set{n}") for n in range(2)}
    samples = [cut(str(n), w, h, entries[f"set{s}"], frames=f) for n, (w, h, f, s) in enumerate(sources)]
    rules = BatchRules(batch_size)
    plan = merge_tails(samples, rules, entries)
    assert [(s.dataset, s.path, s.frames, s.repeats) for s in plan.samples] == [
        (s.dataset, s.path, s.frames, s.repeats) for s in samples
    ]
    for sample in plan.samples:
        crop = sample.crop
        assert crop.scaled_width >= crop.width + crop.left
        assert crop.scaled_height >= crop.height + crop.top
        assert crop.scaled_width / crop.scaled_height == pytest.approx(sample.info.width / sample.info.height, rel=0.02)
    for group in group_samples(plan.samples, rules):
        if draws_per_epoch(group.members) >= batch_size:
            continue
        for dataset in {sample.dataset for sample in group.members}:
            alike = {s.bucket for s in plan.samples if (s.dataset, s.frames) == (dataset, group.members[0].frames)}
            assert alike == {group.bucket}


# Repeats ----------------------------------------------------------------------------------------

FREE = SetRules(may_repeat_more=True)


@pytest.mark.parametrize("clips", range(1, 11))
@pytest.mark.parametrize("processes", [1, 2])
def test_repeats_rise_as_little_as_it_takes(planned: Planned, clips: int, processes: int) -> None:
    rules = BatchRules(2, 2, processes, sets={"test": FREE})
    samples = [*(planned(f"{n}") for n in range(clips)), *(planned(f"f{n}", 96) for n in range(8))]
    plan = fill_buckets(samples, rules, {})
    assert len(plan.samples) == len(samples)
    small = [sample.repeats for sample in plan.samples[:clips]]
    assert small == [max(1, -(-4 * processes // clips))] * clips
    assert {sample.repeats for sample in plan.samples[clips:]} == {1}
    assert len(plan.notes) == (clips < 4 * processes)


def test_a_data_set_with_its_own_repeats_is_left_alone(planned: Planned) -> None:
    samples = [planned("a"), planned("b", dataset="other"), *(planned(f"{n}", 96) for n in range(4))]
    plan = raise_repeats(samples, BatchRules(4, sets={"test": FREE}))
    assert [sample.repeats for sample in plan.samples] == [3, 1, 1, 1, 1, 1]
    assert plan.notes == (
        "test: 1 sample of bucket 64x64@9 is drawn 3 times per epoch, so that the bucket gives the 4 draws of a step "
        "(allow_dataset_oversubscription)",
    )
    with pytest.raises(UserError, match="bucket 64x64@9 has 2 samples"):
        fill_buckets(samples, BatchRules(4, sets={"other": SetRules(keeps_small_buckets=True)}), {})


# Configuration ----------------------------------------------------------------------------------


def test_rules_of_a_configuration(clip_dataset: Entry, planned: Planned) -> None:
    plain, own = clip_dataset(id="plain"), clip_dataset(
        id="own", train_batch_size=3, probability=0.5, repeats=0, disable_bucket_pruning=True
    )  # fmt: skip
    schedule = ScheduleSection(train_batch_size=2, gradient_accumulation_steps=4)
    data = DataSection(allow_dataset_oversubscription=True, data_backend_sampling="uniform", bucket_tail="merge")
    rules = BatchRules.from_config(schedule, data, [plain, own], LTX_GRID, processes=2)
    assert rules.batches_per_step == 8
    assert rules.merges_tails
    assert rules.of("plain") == SetRules(may_repeat_more=True)
    assert rules.of("own") == SetRules(batch_size=3, probability=0.5, keeps_small_buckets=True)
    samples = [planned(f"{n}", dataset=("plain", "own")[n % 2]) for n in range(12)]
    size = measure_epoch(samples, rules)
    assert (size.draws, size.batches, size.steps, size.micro_steps) == (12, 5, 1, 3)


def test_a_budget_counts_tokens_and_a_batch_size_above_one_bounds_it(planned: Planned) -> None:
    bucket = planned("a", 128, 64, 17).bucket  # 4 × 2 × 3 cells
    for schedule, fitting in [
        (ScheduleSection(max_tokens_per_batch=100), 4),
        (ScheduleSection(max_tokens_per_batch=100, train_batch_size=3), 3),
        (ScheduleSection(max_tokens_per_batch=10), 1),
    ]:
        assert BatchRules.from_config(schedule, DataSection(), [], LTX_GRID).capacity("test", bucket) == fitting


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (BatchRules(), "1 clip × 1 micro-batch"),
        (BatchRules(8, 2, 3), "8 clips × 2 micro-batches × 3 processes"),
        (BatchRules(2, sets={"a": SetRules(batch_size=4)}), "2 clips (data sets differ) × 1 micro-batch"),
        (BatchRules(token_budget=12_000), "clips of up to 12,000 tokens × 1 micro-batch"),
        (BatchRules(8, token_budget=12_000), "clips of up to 12,000 tokens, 8 clips at most, × 1 micro-batch"),
    ],
)
def test_a_step_in_words(rules: BatchRules, told: str) -> None:
    assert rules.describe() == told
