"""The batch stream: complete epochs, exact resumption, draws that only depend on running numbers."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from simpletuner.config.catalogs.families import Grid
from simpletuner.core.errors import ExitCode, UserError
from simpletuner.data.batch import Batch
from simpletuner.data.batch_rules import BatchRules, SetRules
from simpletuner.data.batches import BatchStream
from simpletuner.data.sample import Sample

Planned = Callable[..., Sample]
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LTX_GRID = Grid(spatial=32, temporal=8, channels=128)
CAPTIONS = ("one", "two", "three")


def read_latents(sample: Sample) -> Tensor:
    """The sample's number in every cell, in the shape of its bucket."""
    shape = (2, sample.frames.num_frames // 8 + 1, sample.crop.height // 32, sample.crop.width // 32)
    return torch.full(shape, float(sample.path))


def read_prompt(text: str) -> tuple[Tensor, Tensor]:
    embeds = torch.full((4, 3), float(len(text)), dtype=torch.bfloat16)
    return embeds, torch.arange(4) < max(1, len(text))


def stream(samples: Sequence[Sample], **given_settings: Any) -> BatchStream:
    """A stream; settings are those of `BatchRules` and of `BatchStream`."""
    merged = {"batch_size": 2, "seed": 5, "caption_dropout": 0.3, "prefetch": 0} | given_settings
    rules = BatchRules(**{key: merged.pop(key) for key in list(merged) if key in BatchRules.__dataclass_fields__})
    return BatchStream(samples, read_latents, read_prompt, rules, **merged)


def epoch_of(batches: BatchStream) -> list[Batch]:
    return list(islice(batches, batches.batches_per_epoch))


def facts(batch: Batch) -> tuple[Any, ...]:
    """Everything of a batch that can be compared."""
    return (
        batch.latents.tolist(), batch.prompt_embeds.tolist(), batch.prompt_mask.tolist(), batch.frame_rates.tolist(),
        batch.bucket, batch.sample_numbers, batch.sample_names, batch.captions, batch.share, batch.ends_step,
        batch.epoch,
    )  # fmt: skip


@pytest.fixture(scope="module")
def some_samples(planned: Planned) -> list[Sample]:
    """Seven clips in three buckets, some repeated."""
    widths = [64, 64, 64, 64, 96, 96, 128]
    repeats = [1, 1, 1, 1, 2, 2, 3]
    return [
        planned(str(number), width, captions=CAPTIONS, repeats=times, frame_rate=float(8 + number))
        for number, (width, times) in enumerate(zip(widths, repeats, strict=True))
    ]


shapes = st.lists(st.tuples(st.sampled_from([64, 96, 128]), st.integers(1, 4)), min_size=1, max_size=12)


@given(shapes, st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**40))
@quick
def test_every_sample_is_drawn_exactly_as_often_as_asked(
    planned: Planned, shapes: list[tuple[int, int]], batch_size: int, accumulation: int, seed: int
) -> None:
    samples = [planned(str(n), width, repeats=times) for n, (width, times) in enumerate(shapes)]
    batches = stream(samples, batch_size=batch_size, accumulation=accumulation, seed=seed)
    assert batches.samples_per_epoch == sum(times for _, times in shapes)
    numbers: list[int] = []
    for epoch in (1, 2, 3):
        drawn: Counter[str] = Counter()
        shares, steps = 0.0, 0
        in_step = 0
        for batch in epoch_of(batches):
            assert batch.epoch == epoch
            assert 1 <= len(batch.sample_names) <= batch_size
            assert {f"test/{n}" for n, (width, _) in enumerate(shapes) if width == batch.bucket.width} >= set(
                batch.sample_names
            )
            drawn.update(batch.sample_names)
            numbers += batch.sample_numbers
            shares += batch.share
            in_step += 1
            if batch.ends_step:
                assert shares == pytest.approx(1)
                assert in_step <= accumulation
                shares, in_step, steps = 0.0, 0, steps + 1
        assert in_step == 0
        assert steps == batches.steps_per_epoch
        assert drawn == {f"test/{n}": times for n, (_, times) in enumerate(shapes)}
    assert sorted(numbers) == list(range(3 * batches.samples_per_epoch))


@given(st.integers(0, 40), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0, 1, 3]))
@settings(parent=quick, max_examples=25)
def test_resuming_anywhere_equals_going_straight(
    some_samples: list[Sample], position: int, batch_size: int, accumulation: int, prefetch: int
) -> None:
    given_settings = {"batch_size": batch_size, "accumulation": accumulation, "prefetch": prefetch}
    straight = stream(some_samples, **given_settings)
    for _ in range(position):
        next(straight)
    state = straight.state_dict()
    wanted = [facts(next(straight)) for _ in range(12)]
    straight.close()
    resumed = stream(some_samples, **given_settings)
    next(resumed)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert [facts(next(resumed)) for _ in range(12)] == wanted
    if not state["micro_steps"]:
        resumed.skip_to(state["step"])
        assert resumed.state_dict() == state
    resumed.close()


def test_prefetching_changes_nothing(some_samples: list[Sample]) -> None:
    plain, ahead = stream(some_samples), stream(some_samples, prefetch=3)
    assert [facts(batch) for batch in islice(plain, 30)] == [facts(batch) for batch in islice(ahead, 30)]
    assert plain.state_dict() == ahead.state_dict()
    ahead.close()


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 6), st.integers(1, 4))
@quick
def test_a_number_means_the_same_draw_whatever_the_batch_size(
    some_samples: list[Sample], batch_size: int, accumulation: int, other_size: int, other_accumulation: int
) -> None:
    def draws(size: int, group: int) -> dict[int, tuple[str, str]]:
        batches = stream(some_samples, batch_size=size, accumulation=group)
        return {
            number: (name, caption)
            for batch in [*epoch_of(batches), *epoch_of(batches)]
            for number, name, caption in zip(batch.sample_numbers, batch.sample_names, batch.captions, strict=True)
        }

    assert draws(batch_size, accumulation) == draws(other_size, other_accumulation)


@given(shapes, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.sampled_from(["auto-weighting", "uniform"]))
@quick
def test_processes_share_an_epoch_without_loss_or_repeat(
    planned: Planned, shapes: list[tuple[int, int]], processes: int, batch_size: int, accumulation: int, sampling: str
) -> None:
    """Also: they do the same number of steps, and each step holds what one process would train in it."""
    samples = [planned(str(n), w, repeats=times, dataset=f"set{n % 3}") for n, (w, times) in enumerate(shapes)]
    sets = {"set0": SetRules(probability=0.3), "set1": SetRules(batch_size=2)}
    shared = {"batch_size": batch_size, "sampling": sampling, "sets": sets}
    streams = [
        stream(samples, **shared, accumulation=accumulation, processes=processes, process_index=index)
        for index in range(processes)
    ]
    alone = stream(samples, **shared, accumulation=accumulation * processes)
    assert {s.steps_per_epoch for s in streams} == {alone.steps_per_epoch}
    drawn: Counter[str] = Counter()
    numbers: list[int] = []
    for _ in range(2 * alone.steps_per_epoch):
        step = take_step(alone)
        parts = [take_step(batches) for batches in streams]
        assert len({len(part) for part in parts}) == 1
        assert sum(batch.share for part in parts for batch in part) == pytest.approx(1)
        counted = [batch for part in parts for batch in part if batch.share]
        assert sorted(n for batch in counted for n in batch.sample_numbers) == sorted(
            n for batch in step for n in batch.sample_numbers
        )
        for batch in counted:
            assert batch.share == pytest.approx(len(batch.sample_numbers) / sum(len(b.sample_numbers) for b in counted))
            drawn.update(batch.sample_names)
            numbers += batch.sample_numbers
        assert all(len(batch.sample_numbers) == 1 for part in parts for batch in part if not batch.share)
    assert sorted(numbers) == list(range(2 * alone.samples_per_epoch))
    assert drawn == {sample.name: 2 * sample.repeats for sample in samples}


def take_step(batches: BatchStream) -> list[Batch]:
    """All micro-batches of the next step."""
    step = [next(batches)]
    while not step[-1].ends_step:
        step.append(next(batches))
    return step


@pytest.mark.parametrize(
    ("clips", "processes", "sizes"),
    [
        (9, 2, [(4, 4), (1, 1)]),  # a last batch of one draw: the other process computes it too, at no weight
        (10, 2, [(4, 4), (1, 1)]),  # a last batch of two is halved
        (11, 2, [(4, 4), (2, 1)]),
        (9, 4, [(4, 2, 2, 1)]),
        (12, 3, [(4, 4, 4)]),
        (2, 3, [(1, 1, 1)]),
    ],
)
def test_the_last_step_gives_each_process_a_part(
    planned: Planned, clips: int, processes: int, sizes: list[tuple[int, ...]]
) -> None:
    samples = [planned(str(number)) for number in range(clips)]
    streams = [stream(samples, batch_size=4, processes=processes, process_index=i) for i in range(processes)]
    epoch = list(zip(*(epoch_of(batches) for batches in streams), strict=True))
    assert sorted(len(b.sample_numbers) for b in epoch[-1]) == sorted(sizes[-1])
    assert [len(step) for step in epoch] == [processes] * len(sizes)
    fillers = [batch for step in epoch for batch in step if batch.share == 0]
    assert len(fillers) == (1 if (clips, processes) in [(9, 2), (2, 3)] else 0)
    for filler in fillers:
        assert set(filler.sample_numbers) <= {n for batch in epoch[-1] if batch.share for n in batch.sample_numbers}


def test_a_process_must_be_one_of_them(planned: Planned) -> None:
    with pytest.raises(ValueError, match="process 2 is not one of 2"):
        stream([planned("0")], processes=2, process_index=2)


def test_accumulation_trains_the_same_steps_as_a_large_batch(planned: Planned) -> None:
    """Two batches of two hold what one batch of four holds, step for step."""
    samples = [planned(str(number)) for number in range(11)]

    def steps(batch_size: int, accumulation: int) -> list[list[int]]:
        collected: list[list[int]] = [[]]
        for batch in epoch_of(stream(samples, batch_size=batch_size, accumulation=accumulation)):
            collected[-1] += batch.sample_numbers
            if batch.ends_step:
                collected.append([])
        return collected[:-1]

    assert steps(2, 2) == steps(4, 1)
    assert [len(step) for step in steps(2, 2)] == [4, 4, 3]


def test_shares_weigh_samples_equally(planned: Planned) -> None:
    samples = [planned(str(number)) for number in range(5)]
    batches = epoch_of(stream(samples, batch_size=2, accumulation=3))
    assert [(len(batch.sample_names), batch.share, batch.ends_step) for batch in batches] == [
        (2, 0.4, False), (2, 0.4, False), (1, 0.2, True),
    ]  # fmt: skip


def test_the_global_generators_are_neither_read_nor_moved(some_samples: list[Sample]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    wanted = [facts(batch) for batch in islice(stream(some_samples), 12)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert [facts(batch) for batch in islice(stream(some_samples), 12)] == wanted


def test_buckets_mix(planned: Planned) -> None:
    """No bucket waits for another: each is seen early and late in an epoch."""
    samples = [planned(str(number), (64, 96)[number % 2]) for number in range(200)]
    buckets = [batch.bucket.width for batch in epoch_of(stream(samples, batch_size=4))]
    assert 15 < buckets[:50].count(64) + 0 < 35
    assert {*buckets[:10]} == {*buckets[-10:]} == {64, 96}


def test_noise_belongs_to_the_draws(some_samples: list[Sample]) -> None:
    def noise(shape: Sequence[int], numbers: Sequence[int]) -> Tensor:
        return torch.stack([torch.full(tuple(shape), float(number)) for number in numbers])

    for batch in epoch_of(stream(some_samples, draw_noise=noise)):
        assert batch.noise is not None
        assert batch.noise.shape == batch.latents.shape
        assert batch.noise[:, 0, 0, 0, 0].tolist() == list(batch.sample_numbers)


def test_tensors_belong_to_their_samples(some_samples: list[Sample]) -> None:
    for batch in epoch_of(stream(some_samples, caption_dropout=0.5, batch_size=3)):
        for row, name in enumerate(batch.sample_names):
            number = int(name.removeprefix("test/"))
            assert (batch.latents[row] == number).all()
            assert batch.frame_rates[row] == 8 + number
            embeds, mask = read_prompt(batch.captions[row])
            assert torch.equal(batch.prompt_embeds[row], embeds)
            assert torch.equal(batch.prompt_mask[row], mask)
        assert batch.prompt_embeds.dtype == torch.bfloat16
        assert batch.prompt_mask.dtype == torch.bool
        assert batch.latents.shape[0] == len(batch.sample_names)


def test_captions_are_all_used_and_dropped_at_their_rate(planned: Planned) -> None:
    samples = [planned(str(number), captions=CAPTIONS) for number in range(40)]
    drawn = Counter(
        caption
        for batch in islice(stream(samples, caption_dropout=0.25, batch_size=8), 200)
        for caption in batch.captions
    )
    assert set(drawn) == {"", *CAPTIONS}
    assert drawn[""] / 1600 == pytest.approx(0.25, abs=0.04)
    assert all(drawn[caption] / 1600 == pytest.approx(0.25, abs=0.04) for caption in CAPTIONS)


def test_no_dropout_and_full_dropout(planned: Planned) -> None:
    samples = [planned(str(number)) for number in range(6)]
    assert {c for batch in epoch_of(stream(samples, caption_dropout=0.0)) for c in batch.captions} == {"a"}
    dropped = epoch_of(stream(samples, caption_dropout=1.0))
    assert {c for batch in dropped for c in batch.captions} == {""}
    # The empty prompt is encoded like any other; it is not a tensor of zeros with an empty mask.
    assert all(batch.prompt_mask.any(dim=1).all() for batch in dropped)


def test_another_seed_gives_other_captions(planned: Planned) -> None:
    samples = [planned(str(number), captions=CAPTIONS) for number in range(40)]
    by_seed: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for seed in (1, 2):
        for batch in epoch_of(stream(samples, seed=seed)):
            by_seed[seed] += zip(batch.sample_names, batch.captions, strict=True)
    assert sorted(by_seed[1]) != sorted(by_seed[2])


@pytest.mark.parametrize("prefetch", [0, 2])
def test_errors_reach_whoever_asks_for_the_batch(planned: Planned, prefetch: int) -> None:
    samples = [planned(str(number)) for number in range(6)]
    missing = stream(samples, batch_size=1).__next__().sample_names[0]

    def read(sample: Sample) -> Tensor:
        if sample.name == broken:
            raise FileNotFoundError("gone")
        return read_latents(sample)

    broken = ""
    batches = BatchStream(samples, read, read_prompt, BatchRules(), seed=5, caption_dropout=0.3, prefetch=prefetch)
    good = [batch.sample_names[0] for batch in islice(stream(samples, batch_size=1), 6)]
    assert good[0] == missing
    broken = good[2]
    assert [next(batches).sample_names[0] for _ in range(2)] == good[:2]
    for _ in range(2):  # it fails each time, and the position stays
        with pytest.raises(UserError, match=f"{broken}: its latents cannot be read") as caught:
            next(batches)
        assert caught.value.exit_code == ExitCode.DISK
        assert batches.state_dict()["drawn"] == 2
    broken = ""
    assert [next(batches).sample_names[0] for _ in range(4)] == good[2:]
    batches.close()


def test_a_changed_data_set_does_not_resume(planned: Planned) -> None:
    samples = [planned(str(number), (64, 96)[number % 2]) for number in range(12)]
    begun = stream(samples)
    next(begun)
    state = begun.state_dict()
    for changed, told in [
        (stream(samples[:5]), "the data set"),
        (stream(samples, batch_size=3), r"batch_size \(2 then, 3 now\)"),
        (stream(samples, seed=6), r"seed \(5 then, 6 now\)"),
        (stream(samples, sampling="uniform"), "how data sets are mixed"),
        (stream(samples, sets={"test": SetRules(batch_size=3)}), "clips per batch"),
    ]:
        with pytest.raises(UserError, match=told):
            changed.load_state_dict(state)
    reworded = [planned(str(number), (64, 96)[number % 2], captions=["b"]) for number in range(12)]
    assert stream(reworded).load_state_dict(state) == ()  # a mended caption does not stop a run
    del state["drawn"]
    with pytest.raises(UserError, match="in another way than this version"):
        stream(samples).load_state_dict(state)


def test_within_a_step_neither_accumulation_nor_processes_may_change(planned: Planned) -> None:
    samples = [planned(str(number)) for number in range(12)]
    begun = stream(samples, accumulation=3)
    next(begun)
    for changed, told in [({"accumulation": 2}, r"accumulation \(3 then, 2 now\)"), ({"processes": 3}, "processes")]:
        with pytest.raises(UserError, match=told):
            stream(samples, **{"accumulation": 3, **changed}).load_state_dict(begun.state_dict())


def rest_of_epoch(streams: Sequence[BatchStream], epoch: int = 1) -> Counter[int]:
    """Numbers of all draws that count and that these processes still train in `epoch`."""
    drawn: Counter[int] = Counter()
    for batches in streams:
        for batch in batches:
            if batch.epoch > epoch:
                break
            drawn.update(batch.sample_numbers if batch.share else ())
    return drawn


@given(shapes, st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 9))
@settings(parent=quick, max_examples=40)
def test_another_number_of_processes_goes_on_at_the_same_place(
    planned: Planned, shapes: list[tuple[int, int]], before: int, after: int, accumulation: int, steps: int
) -> None:
    samples = [planned(str(n), width, repeats=times) for n, (width, times) in enumerate(shapes)]
    first = [stream(samples, processes=before, process_index=index) for index in range(before)]
    trained: Counter[int] = Counter()
    for _ in range(min(steps, first[0].steps_per_epoch - 1)):
        for batches in first:
            ends_step = False
            while not ends_step:
                batch = next(batches)
                ends_step = batch.ends_step
                trained.update(batch.sample_numbers if batch.share else ())
    states = [batches.state_dict() for batches in first]
    assert all(state == states[0] for state in states)
    assert states[0]["drawn"] == trained.total()
    second = [
        stream(samples, processes=after, accumulation=accumulation, process_index=index) for index in range(after)
    ]
    for batches in second:
        told = batches.load_state_dict(states[0])
        assert len(told) == (before != after) + (accumulation != 1)
    trained += rest_of_epoch(second)
    assert trained == Counter(range(sum(times for _, times in shapes)))


def test_one_bucket_goes_on_with_another_batch_size(planned: Planned) -> None:
    samples = [planned(str(number)) for number in range(23)]
    begun = stream(samples, batch_size=3)
    trained = Counter(number for batch in islice(begun, 3) for number in batch.sample_numbers)
    larger = stream(samples, batch_size=4)
    (told,) = larger.load_state_dict(begun.state_dict())
    assert told == "batch_size (3 then, 4 now); the data goes on after 9 samples of epoch 1"
    trained.update(next(larger).sample_numbers)
    again = stream(samples, batch_size=4)
    assert again.load_state_dict(larger.state_dict()) == ()
    wanted = [facts(next(larger)) for _ in range(4)]
    assert [facts(next(again)) for _ in range(4)] == wanted
    assert (trained + Counter(number for row in wanted[:3] for number in row[5])) == Counter(range(23))
    assert wanted[3][-1] == 2  # the next epoch


def test_between_epochs_batches_may_change(planned: Planned) -> None:
    samples = [planned(str(number), (64, 96)[number % 2]) for number in range(12)]
    begun = stream(samples)
    epoch_of(begun)
    changed = stream(samples, batch_size=5)
    (told,) = changed.load_state_dict(begun.state_dict())
    assert told == "batch_size (2 then, 5 now); the data goes on at the beginning of epoch 2"
    assert {batch.epoch for batch in epoch_of(changed)} == {2}


def test_state_is_a_few_integers(some_samples: list[Sample]) -> None:
    state = stream(some_samples).state_dict()
    assert all(type(value) is int for value in state.values())
    assert len(json.dumps(state)) < 250


def test_nothing_to_draw_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="needs samples"):
        stream([])


def test_a_token_budget_fills_small_buckets_with_more_clips(planned: Planned) -> None:
    samples = [planned(str(number), (64, 128)[number % 2]) for number in range(40)]
    batches = epoch_of(stream(samples, batch_size=1, token_budget=40, grid=LTX_GRID, accumulation=2))
    sizes = {width: [len(b.sample_names) for b in batches if b.bucket.width == width] for width in (64, 128)}
    assert sizes == {64: [5] * 4, 128: [2] * 10}  # clips of 8 and of 16 tokens
    capped = epoch_of(stream(samples, batch_size=3, token_budget=40, grid=LTX_GRID))
    assert max(len(batch.sample_names) for batch in capped) == 3
    too_small = epoch_of(stream(samples, batch_size=1, token_budget=7, grid=LTX_GRID))
    assert {len(batch.sample_names) for batch in too_small} == {1}
