"""Data sets that join and leave: each epoch is whole, counts are exact, a resumed run equals an undisturbed one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.core.errors import UserError
from simpletuner.data.batch import Batch
from simpletuner.data.batch_rules import BatchRules, SetRules, Span
from simpletuner.data.batches import BatchStream
from simpletuner.data.epochs import Epochs, total_steps
from simpletuner.data.geometry import at_epoch
from simpletuner.data.sample import CropPlan, Freedom, Sample

Planned = Callable[..., Sample]
SPANS = {"early": Span(end_epoch=2), "late": Span(start_epoch=2, start_step=5), "always": Span()}


def latents(sample: Sample) -> Tensor:
    return torch.full((1, 1, 2, 2), sample.frames.start_seconds)


def prompt(text: str) -> tuple[Tensor, Tensor]:
    return torch.zeros(2, 3), torch.ones(2, dtype=torch.bool)


@pytest.fixture(scope="module")
def samples(planned: Planned) -> list[Sample]:
    """Four clips of a set that leaves, six of one that joins, five of one that stays."""
    counts = {"early": 4, "late": 6, "always": 5}
    return [
        planned(f"{n}.mp4", dataset=name, repeats=1 + n % 2) for name, count in counts.items() for n in range(count)
    ]


def rules(spans: dict[str, Span] = SPANS, **settings: Any) -> BatchRules:
    return BatchRules(batch_size=2, sets={name: SetRules(span=span) for name, span in spans.items()}, **settings)


def stream(samples: list[Sample], chosen: BatchRules, **settings: Any) -> BatchStream:
    return BatchStream(samples, latents, prompt, chosen, seed=3, caption_dropout=0.2, prefetch=0, **settings)


def facts(batch: Batch) -> tuple[Any, ...]:
    return batch.sample_names, batch.sample_numbers, batch.captions, batch.epoch, batch.ends_step, batch.share


def test_each_epoch_draws_the_whole_of_those_that_take_part(samples: list[Sample]) -> None:
    batches = stream(samples, rules(accumulation=2))
    epochs = list(islice(batches.epochs.walk(), 5))
    assert [sorted(start.datasets) for start in epochs] == [
        ["always", "early"], ["always", "early", "late"], ["always", "late"], ["always", "late"], ["always", "late"],
    ]  # fmt: skip
    drawn = list(islice(batches, sum(start.size.micro_steps for start in epochs)))
    for start in epochs:
        mine = [batch for batch in drawn if batch.epoch == start.epoch]
        wanted = {sample.name: sample.repeats for sample in samples if sample.dataset in start.datasets}
        assert Counter(name for batch in mine for name in batch.sample_names) == wanted
        assert sum(batch.ends_step for batch in mine) == start.size.steps
    numbers = [number for batch in drawn for number in batch.sample_numbers]
    assert len(numbers) == len(set(numbers))
    assert (batches.state_dict()["epoch"], batches.state_dict()["step"]) == (6, epochs[-1].step + epochs[-1].size.steps)


@pytest.mark.parametrize("sampling", ["auto-weighting", "uniform"])
def test_a_resumed_stream_equals_an_undisturbed_one(samples: list[Sample], sampling: str) -> None:
    chosen = rules(sampling=sampling, accumulation=2)
    whole = stream(samples, chosen)
    length = sum(start.size.micro_steps for start in islice(whole.epochs.walk(), 4))
    states, expected = [whole.state_dict()], []
    for batch in islice(whole, length):
        expected.append(facts(batch))
        states.append(whole.state_dict())
    for place in range(0, length - 4, 3):
        resumed = stream(samples, chosen)
        resumed.load_state_dict(states[place])
        assert [facts(batch) for batch in islice(resumed, 4)] == expected[place : place + 4]


def test_two_processes_train_the_same_steps(samples: list[Sample]) -> None:
    alone = stream(samples, rules(accumulation=2))
    pair = [stream(samples, rules(processes=2), process_index=index) for index in range(2)]
    for _ in range(3 * alone.steps_per_epoch):
        step: list[Batch] = []
        while not step or not step[-1].ends_step:
            step.append(next(alone))
        shared = [next(process) for process in pair]
        names = Counter(name for batch in shared if batch.share for name in batch.sample_names)
        assert names == Counter(name for batch in step for name in batch.sample_names)


def test_sets_that_come_and_go_share_no_batch(samples: list[Sample]) -> None:
    batches = stream(samples, rules())
    for batch in islice(batches, 40):
        assert len({name.split("/")[0] for name in batch.sample_names}) == 1


def test_another_span_is_another_order(samples: list[Sample]) -> None:
    state = stream(samples, rules()).state_dict()
    with pytest.raises(UserError, match="when one takes part"):
        stream(samples, rules({**SPANS, "early": Span(end_epoch=3)})).load_state_dict(state)


@pytest.mark.parametrize("spans", [SPANS, {}])
def test_counting(samples: list[Sample], spans: dict[str, Span]) -> None:
    epochs = Epochs(samples, rules(spans))
    starts = list(islice(epochs.walk(), 5))
    assert [epochs.steps_of(count) for count in range(6)] == [0, *(start.step + start.size.steps for start in starts)]
    for start in starts:
        assert epochs.passed(start.step + start.size.steps) == start.epoch
        assert epochs.passed(start.step + 1) == pytest.approx(start.epoch - 1 + 1 / start.size.steps)
    length = starts[2].step + 1
    assert total_steps(ScheduleSection(max_train_steps=length, num_train_epochs=2), epochs.steps_of) == length
    limited = ScheduleSection(max_train_steps=length, num_train_epochs=2, strict_epoch_limit=True)
    assert total_steps(limited, epochs.steps_of) == starts[2].step
    assert total_steps(ScheduleSection(max_train_steps=0, num_train_epochs=2), epochs.steps_of) == starts[2].step


def test_joining_and_leaving_are_told(samples: list[Sample]) -> None:
    epochs = Epochs(samples, rules())
    second, third = list(islice(epochs.walk(), 3))[1:]
    assert list(epochs.changes(third.step + 1)) == [(second, {"late"}, frozenset()), (third, frozenset(), {"early"})]
    assert len(list(epochs.changes(third.step))) == 1


def test_an_epoch_without_data_is_refused(samples: list[Sample]) -> None:
    epochs = Epochs(samples, rules({name: Span(end_epoch=2) for name in SPANS}))
    assert epochs.passed(epochs.steps_of(2)) == 2
    with pytest.raises(UserError, match="no data set takes part in epoch 3, which begins after step"):
        epochs.passed(epochs.steps_of(2) + 1)


@pytest.mark.parametrize(
    ("span", "covered"),
    [(Span(), [True] * 4), (Span(start_epoch=3), [False, False, True, True]),
     (Span(end_epoch=2), [True, True, False, False]),
     (Span(start_step=11), [False, True, True, True]), (Span(start_step=12), [False, False, True, True]),
     (Span(end_step=20), [True, True, False, False]), (Span(end_step=21), [True, True, True, False])],
)  # fmt: skip
def test_starts_and_ends_count_where_an_epoch_begins(span: Span, covered: list[bool]) -> None:
    assert [span.covers(epoch, 10 * (epoch - 1)) for epoch in range(1, 5)] == covered


# Places that are drawn anew ---------------------------------------------------------------------


def test_each_epoch_draws_other_places_of_the_same_size(planned: Planned) -> None:
    plain = replace(planned("0.mp4", frames=9), crop=CropPlan(128, 96, 5, 7, 64, 64))
    sample = replace(plain, freedom=Freedom(True, begin_seconds=1.0, spare_frames=40))
    assert at_epoch(plain, 5) is plain
    assert at_epoch(sample, 1) is sample
    seen = [at_epoch(sample, epoch) for epoch in range(2, 202)]
    assert seen == [at_epoch(sample, epoch) for epoch in range(2, 202)]
    assert {one.bucket for one in seen} == {sample.bucket}
    assert {one.name for one in seen} == {sample.name}
    assert all(0 <= one.crop.left <= 64 and 0 <= one.crop.top <= 32 for one in seen)
    offsets = Counter(round((one.frames.start_seconds - 1.0) * 25.0) for one in seen)
    assert set(offsets) <= set(range(41))
    assert len(offsets) > 35
    assert len({(one.crop.left, one.crop.top) for one in seen}) > 150


def test_a_stream_reads_the_places_of_its_epoch(planned: Planned) -> None:
    free = Freedom(False, spare_frames=200)
    samples = [replace(planned(f"{number}.mp4"), freedom=free) for number in range(4)]
    batches = stream(samples, rules({}))
    first = {
        name: value
        for batch in islice(batches, 2)
        for name, value in zip(batch.sample_names, batch.latents, strict=True)
    }
    assert all(value.max() == 0 for value in first.values())
    state = batches.state_dict()
    second = [batch.latents for batch in islice(batches, 2)]
    assert len({float(row.max()) for rows in second for row in rows}) == 4
    batches.load_state_dict(state)
    assert all(torch.equal(one, other.latents) for one, other in zip(second, islice(batches, 2), strict=True))
