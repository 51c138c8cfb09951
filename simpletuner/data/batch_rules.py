"""The rules by which draws become batches: how many clips, which may share a batch, which come sooner.

One value for the whole run, made from the configuration without torch; `buckets.py` checks data sets
against it, `batches.py` draws by it, and a forecast counts with it. It must not know files.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from simpletuner.config.dataset import ClipDataset
from simpletuner.config.sections.data import DataSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.data.sample import BucketKey, Sample

Sampling = Literal["auto-weighting", "uniform"]


class LatentGrid(Protocol):
    """The part of a family's grid that turns pixel shapes into latent shapes."""

    def latent_shape(self, width: int, height: int, num_frames: int) -> tuple[int, int, int, int]: ...


@dataclass(frozen=True)
class Span:
    """When a data set takes part: both starts must be reached, and one of the ends is enough.

    Attributes:
        start_epoch: Its first epoch, from 1.
        start_step: Its first optimizer step, from 1; 0 means the same.
        end_epoch: Its last epoch; None for no end.
        end_step: Its last optimizer step; None for no end.
    """

    start_epoch: int = 1
    start_step: int = 0
    end_epoch: int | None = None
    end_step: int | None = None

    def covers(self, epoch: int, step: int) -> bool:
        """Whether it takes part in an epoch that begins when `step` steps are done."""
        begun = epoch >= self.start_epoch and step + 1 >= self.start_step
        over_by_epoch = self.end_epoch is not None and epoch > self.end_epoch
        return begun and not over_by_epoch and not (self.end_step is not None and step >= self.end_step)


ALWAYS = Span()


@dataclass(frozen=True)
class SetRules:
    """What one data set asks of its batches.

    Attributes:
        batch_size: Its own clips per batch; None follows the run.
        probability: Weight while data sets are mixed, above 0.
        keeps_small_buckets: Whether buckets that cannot fill a batch stay.
        may_repeat_more: Whether repeats may be raised for buckets that cannot fill a step.
        span: When it takes part.
    """

    batch_size: int | None = None
    probability: float = 1.0
    keeps_small_buckets: bool = False
    may_repeat_more: bool = False
    span: Span = ALWAYS


@dataclass(frozen=True)
class BatchRules:
    """The rules of a run.

    Attributes:
        batch_size: Clips per batch; with `token_budget` the most of them, where above 1.
        accumulation: Micro-batches per optimizer step and process.
        processes: Processes that train together.
        token_budget: Latent cells per batch at most, one clip at least; None counts clips.
        grid: Gives the tokens of a clip; needed with `token_budget`.
        sampling: What weighs in the draw between data sets, see `order.DrawTable.by_set`.
        merges_tails: Whether buckets that cannot fill a batch join their nearest neighbour.
        sets: Rules of the data sets by id; one that is missing has the defaults.
    """

    batch_size: int = 1
    accumulation: int = 1
    processes: int = 1
    token_budget: int | None = None
    grid: LatentGrid | None = None
    sampling: Sampling = "auto-weighting"
    merges_tails: bool = False
    sets: Mapping[str, SetRules] = field(default_factory=dict)

    @classmethod
    def from_config(
        cls,
        schedule: ScheduleSection,
        data: DataSection,
        datasets: Sequence[ClipDataset],
        grid: LatentGrid,
        processes: int = 1,
    ) -> BatchRules:
        """The rules that the configuration gives for a run of `processes` processes."""
        return cls(
            batch_size=schedule.train_batch_size,
            accumulation=schedule.gradient_accumulation_steps,
            processes=processes,
            token_budget=schedule.max_tokens_per_batch,
            grid=grid,
            sampling=data.data_backend_sampling,
            merges_tails=data.bucket_tail == "merge",
            sets={dataset.id: _set_rules(dataset, data) for dataset in datasets},
        )

    def of(self, dataset: str) -> SetRules:
        """The rules of the data set called `dataset`."""
        return self.sets.get(dataset, DEFAULT_SET)

    def least(self, dataset: str) -> int:
        """Clips that a bucket of `dataset` must give to fill a batch; a token budget asks for one only."""
        if self.token_budget is not None:
            return 1
        return self.of(dataset).batch_size or self.batch_size

    def capacity(self, dataset: str, bucket: BucketKey) -> int:
        """The most clips of `bucket` in one batch of `dataset`."""
        own = self.of(dataset).batch_size
        if self.token_budget is None:
            return own or self.batch_size
        fitting = max(1, self.token_budget // self.tokens(bucket))
        if own is None and self.batch_size == 1:  # the default of the option, which names no limit
            return fitting
        return min(fitting, own or self.batch_size)

    def tokens(self, bucket: BucketKey) -> int:
        """Latent cells of one clip of `bucket`."""
        if self.grid is None:
            raise ValueError("tokens are counted on a grid, and these rules have none")
        return math.prod(self.grid.latent_shape(bucket.width, bucket.height, bucket.num_frames)[1:])

    def group(self, dataset: str, bucket: BucketKey) -> Hashable:
        """What two clips must have in common to share a batch.

        The shape, and the data sets must be told apart by nothing: neither by clips per batch nor by weight, nor by
        when they take part.
        With uniform sampling each batch belongs to one data set.
        """
        if self.sampling == "uniform":
            return bucket, dataset
        return bucket, self.capacity(dataset, bucket), self.of(dataset).probability, self.of(dataset).span

    def describe(self) -> str:
        """What one optimizer step holds, in words."""
        clips = f"{self.batch_size} clip{'s' if self.batch_size != 1 else ''}"
        if self.token_budget is not None:
            limit = f", {clips} at most," if self.batch_size > 1 else ""
            clips = f"clips of up to {self.token_budget:,} tokens{limit}"
        elif any(rules.batch_size not in (None, self.batch_size) for rules in self.sets.values()):
            clips += " (data sets differ)"
        processes = f" × {self.processes} processes" if self.processes > 1 else ""
        return f"{clips} × {self.accumulation} micro-batch{'es' if self.accumulation != 1 else ''}{processes}"

    @property
    def batches_per_step(self) -> int:
        """Batches of one optimizer step over all processes."""
        return self.accumulation * self.processes


DEFAULT_SET = SetRules()


def _set_rules(dataset: ClipDataset, data: DataSection) -> SetRules:
    own = dataset.disable_bucket_pruning
    return SetRules(
        batch_size=dataset.train_batch_size,
        probability=dataset.probability,
        keeps_small_buckets=data.disable_bucket_pruning if own is None else own,
        may_repeat_more=data.allow_dataset_oversubscription and "repeats" not in dataset.model_fields_set,
        span=Span(
            start_epoch=max(dataset.start_epoch, 1),
            start_step=dataset.start_step if dataset.start_step > 1 else 0,
            end_epoch=dataset.end_epoch or None,
            end_step=dataset.end_step or None,
        ),
    )


# Groups -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Group:
    """Samples that may share a batch.

    Attributes:
        bucket: Their shape.
        members: The samples, in their order; of one data set or of several.
        capacity: Most clips in one batch.
        least: Clips that fill a batch, see `BatchRules.least`.
        is_kept: Whether one of its data sets keeps buckets that cannot fill a batch.
    """

    bucket: BucketKey
    members: tuple[Sample, ...]
    capacity: int
    least: int
    is_kept: bool


def group_samples(samples: Sequence[Sample], rules: BatchRules) -> list[Group]:
    """The groups of `samples`, in order of their buckets; the order within a group is kept."""
    members: dict[Hashable, list[Sample]] = {}
    group_of: dict[tuple[str, BucketKey], Hashable] = {}
    for sample in samples:
        place = (sample.dataset, sample.bucket)
        group = group_of.get(place)
        if group is None:
            group = group_of[place] = rules.group(*place)
        members.setdefault(group, []).append(sample)
    found = [_describe_group(tuple(group), rules) for group in members.values()]
    return sorted(found, key=lambda group: group.bucket)


def _describe_group(members: tuple[Sample, ...], rules: BatchRules) -> Group:
    datasets = {sample.dataset: None for sample in members}
    first, bucket = members[0].dataset, members[0].bucket
    return Group(
        bucket=bucket,
        members=members,
        capacity=rules.capacity(first, bucket),
        least=rules.least(first),
        is_kept=any(rules.of(dataset).keeps_small_buckets for dataset in datasets),
    )


# Counting ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochSize:
    """One epoch in numbers, the same for every epoch of the same data sets.

    Attributes:
        draws: Uses of samples, over all processes.
        batches: Batches, over all processes.
        steps: Optimizer steps.
        micro_steps: Forward passes of each process.
    """

    draws: int
    batches: int
    steps: int
    micro_steps: int


def measure_epoch(samples: Sequence[Sample], rules: BatchRules) -> EpochSize:
    """How long an epoch over `samples` is."""
    draws: dict[Hashable, int] = {}
    capacity: dict[Hashable, int] = {}
    known: dict[tuple[str, int, int, int], Hashable] = {}  # few; spares building a key object per sample
    for sample in samples:
        shape = (sample.dataset, sample.crop.width, sample.crop.height, sample.frames.num_frames)
        group = known.get(shape)
        if group is None:
            group = known[shape] = rules.group(sample.dataset, sample.bucket)
            capacity.setdefault(group, rules.capacity(sample.dataset, sample.bucket))
        draws[group] = draws.get(group, 0) + sample.repeats
    batches = sum(-(-count // capacity[group]) for group, count in draws.items())
    steps, micro_steps = count_steps(batches, rules.accumulation, rules.processes)
    return EpochSize(sum(draws.values()), batches, steps, micro_steps)


def count_steps(batches: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Optimizer steps of `batches` batches, and the micro-batches that each process does in them."""
    whole, rest = divmod(batches, accumulation * processes)
    return whole + (rest > 0), whole * accumulation + -(-rest // processes)
