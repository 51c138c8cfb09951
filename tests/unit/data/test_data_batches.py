"""The batch stream: complete epochs, exact resumption, draws that only depend on running numbers."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from simpletuner.core.errors import UserError
from simpletuner.data.batch import Batch
from simpletuner.data.batches import BatchStream, order_epoch
from simpletuner.data.sample import Sample

Planned = Callable[..., Sample]
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CAPTIONS = ("one", "two", "three")


def read_latents(sample: Sample) -> Tensor:
    """The sample's number in every cell, in the shape of its bucket."""
    shape = (2, sample.frames.num_frames // 8 + 1, sample.crop.height // 32, sample.crop.width // 32)
    return torch.full(shape, float(sample.path))


def read_prompt(text: str) -> tuple[Tensor, Tensor]:
    embeds = torch.full((4, 3), float(len(text)), dtype=torch.bfloat16)
    return embeds, torch.arange(4) < max(1, len(text))


def stream(samples: Sequence[Sample], **given_settings: Any) -> BatchStream:
    merged = {"batch_size": 2, "accumulation": 1, "seed": 5, "caption_dropout": 0.3, "prefetch": 0} | given_settings
    return BatchStream(samples, read_latents, read_prompt, **merged)


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


def test_orders_differ_between_epochs_and_seeds_only() -> None:
    first = order_epoch(50, 1, 1)
    assert np.array_equal(first, order_epoch(50, 1, 1))
    assert not np.array_equal(first, order_epoch(50, 1, 2))
    assert not np.array_equal(first, order_epoch(50, 2, 1))


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
    by_seed = defaultdict(list)
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
            raise FileNotFoundError(sample.name)
        return read_latents(sample)

    broken = ""
    batches = BatchStream(samples, read, read_prompt, batch_size=1, accumulation=1, seed=5, caption_dropout=0.3,
                          prefetch=prefetch)  # fmt: skip
    good = [batch.sample_names[0] for batch in islice(stream(samples, batch_size=1), 6)]
    assert good[0] == missing
    broken = good[2]
    assert [next(batches).sample_names[0] for _ in range(2)] == good[:2]
    for _ in range(2):  # it fails each time, and the position stays
        with pytest.raises(FileNotFoundError, match=broken):
            next(batches)
        assert batches.state_dict()["batch"] == 2
    broken = ""
    assert [next(batches).sample_names[0] for _ in range(4)] == good[2:]
    batches.close()


def test_the_thread_stays_within_its_bound_and_ends(planned: Planned) -> None:
    samples = [planned(str(number)) for number in range(50)]
    read = []
    enough = threading.Event()

    def count(sample: Sample) -> Tensor:
        read.append(sample.path)
        if len(read) >= 4:
            enough.set()
        return read_latents(sample)

    batches = BatchStream(samples, count, read_prompt, batch_size=1, accumulation=1, seed=1, caption_dropout=0,
                          prefetch=2)  # fmt: skip
    assert not read  # nothing happens before the first batch is asked for
    next(batches)
    assert enough.wait(5)
    assert len(read) <= 1 + 2 + 1  # handed out, waiting in the queue, in the thread's hand
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]
    assert batches.state_dict()["batch"] == 1
    next(batches)  # goes on where it was
    assert batches.state_dict()["batch"] == 2
    batches.close()


def test_a_changed_data_set_does_not_resume(planned: Planned) -> None:
    samples = [planned(str(number)) for number in range(6)]
    state = stream(samples).state_dict()
    for changed, told in [
        (stream(samples[:5]), "the data set"),
        (stream(samples, batch_size=3), r"batch_size \(2 then, 3 now\)"),
        (stream(samples, seed=6), r"seed \(5 then, 6 now\)"),
        (stream(samples, accumulation=2), r"accumulation \(1 then, 2 now\)"),
    ]:
        with pytest.raises(UserError, match=told):
            changed.load_state_dict(state)
    reworded = [planned(str(number), captions=["b"]) for number in range(6)]
    stream(reworded).load_state_dict(state)  # a mended caption does not stop a run


def test_state_is_a_few_integers(some_samples: list[Sample]) -> None:
    state = stream(some_samples).state_dict()
    assert all(type(value) is int for value in state.values())
    assert len(state) <= 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_latents_keep_their_kind(planned: Planned, dtype: torch.dtype) -> None:
    samples = [planned(str(number)) for number in range(4)]
    batches = BatchStream(samples, lambda sample: read_latents(sample).to(dtype), read_prompt, batch_size=4,
                          accumulation=1, seed=1, caption_dropout=0, prefetch=0)  # fmt: skip
    batch = next(batches)
    assert batch.latents.dtype == dtype
    assert sorted(batch.latents[:, 0, 0, 0, 0].tolist()) == [0, 1, 2, 3]


def test_nothing_to_draw_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="needs samples"):
        stream([])
