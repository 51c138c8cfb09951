"""How long a run is and what it is made of: buckets, epochs and steps, checkpoints, validations. Counts only.

Everything follows from the configuration and the survey of the data; no torch, no clock. Next stop:
`forecast.py`, which says what it costs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.run_config import RunConfig
from simpletuner.config.sections.validation import CLIPS_SHOWN
from simpletuner.data.epochs import Epochs, total_steps
from simpletuner.data.sample import BucketKey, Sample
from simpletuner.training.due import Rhythm, times_due

if TYPE_CHECKING:
    from simpletuner.recipes.survey import Survey


@dataclass(frozen=True)
class BucketLine:
    """One bucket of the data plan.

    Attributes:
        bucket: Its shape.
        files: Files with samples in it.
        windows: Samples; one file may give several.
        draws: Uses of samples per epoch.
        latent_shape: [C, F, H, W] of one sample.
        tokens: Latent cells of one sample.
        batches: Batches per epoch.
        batch_size: Most samples in one batch.
        prior_draws: Draws of prior data, for each of which the base model answers too.
    """

    bucket: BucketKey
    files: int
    windows: int
    draws: int
    latent_shape: tuple[int, int, int, int]
    tokens: int
    batches: int
    batch_size: int
    prior_draws: int = 0


@dataclass(frozen=True)
class DataPlan:
    """The data of a run.

    Attributes:
        buckets: In order of their size.
        left_out: One line per reason.
        left_out_count: Files and samples that are not trained.
        notes: What was changed to fill batches, and what was noticed while reading.
        captions: Different captions.
        samples: All trained samples.
        evaluation: Samples of the sets for evaluation; they are encoded like the others, and never trained.
        is_assumed: Whether the clips were not read and one bucket of the wanted size stands in for them.
        batches_per_epoch: Over all buckets, in the first epoch.
        steps_per_epoch: Optimizer steps of the first epoch.
        epochs: How long each epoch is; None where that is not known.
    """

    buckets: tuple[BucketLine, ...]
    left_out: tuple[str, ...]
    left_out_count: int
    notes: tuple[str, ...]
    captions: tuple[str, ...]
    samples: tuple[Sample, ...]
    batches_per_epoch: int
    steps_per_epoch: int
    is_assumed: bool = False
    evaluation: tuple[Sample, ...] = ()
    epochs: Epochs | None = None

    @property
    def draws(self) -> int:
        """Uses of samples per epoch in which all data sets take part."""
        return sum(line.draws for line in self.buckets)

    @property
    def encoded_buckets(self) -> Mapping[BucketKey, int]:
        """Shapes of what is encoded, samples for evaluation included, and how many there are of each."""
        if self.is_assumed:
            return {line.bucket: line.windows for line in self.buckets}
        return Counter(sample.bucket for sample in (*self.samples, *self.evaluation))

    @property
    def windows(self) -> int:
        """Samples over all buckets."""
        return sum(line.windows for line in self.buckets)


@dataclass(frozen=True)
class RunLength:
    """A run in numbers.

    Attributes:
        steps: Optimizer steps; None where epochs decide and the data are not known.
        epochs: Passes over the data; None without data.
        samples_per_step: Clips in one optimizer step at most.
        checkpoints: Checkpoints written.
        checkpoints_kept: Of them at the end.
        validations: Times validation videos are made, the base model's included.
        videos_each: Videos per validation.
        evaluations: Times the evaluation loss is measured, before the first step too.
        clips_each: Clips of each evaluation set that are measured, by the set's id.
    """

    steps: int | None
    epochs: float | None
    samples_per_step: int
    checkpoints: int
    checkpoints_kept: int
    validations: int
    videos_each: int
    evaluations: int = 0
    clips_each: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rhythms:
    """What recurs in a run: checkpoints that are kept, safety checkpoints, the evaluation loss, validation videos."""

    checkpoint: Rhythm
    rolling: Rhythm
    evaluation: Rhythm
    validation: Rhythm


ASSUMED_FRAMES = 121  # of a clip whose data set names no number


def plan_data(config: RunConfig, survey: Survey) -> DataPlan:
    """The data plan of a survey."""
    # Imported here so that a plan without data starts without NumPy.
    from simpletuner.data.batch_rules import group_samples
    from simpletuner.data.buckets import draws_per_epoch
    from simpletuner.data.notes import summarize_reasons
    from simpletuner.recipes.survey import batch_rules, pruned_samples

    grid = FAMILIES[str(config.model.model_family)].grid
    rules = batch_rules(config)
    lines = []
    for group in group_samples(survey.samples, rules):
        shape = grid.latent_shape(group.bucket.width, group.bucket.height, group.bucket.num_frames)
        draws = draws_per_epoch(group.members)
        lines.append(
            BucketLine(
                bucket=group.bucket,
                files=len({(sample.dataset, sample.path) for sample in group.members}),
                windows=len(group.members),
                draws=draws,
                latent_shape=shape,
                tokens=math.prod(shape[1:]),
                batches=math.ceil(draws / group.capacity),
                batch_size=group.capacity,
                prior_draws=draws_per_epoch([sample for sample in group.members if sample.is_prior]),
            )
        )
    pruned = pruned_samples(survey.found, survey.samples)
    reasons = summarize_reasons([*survey.found.left_out, *pruned])
    epochs = Epochs(survey.samples, rules)
    epoch = epochs.at(1, 0).size
    return DataPlan(
        buckets=tuple(lines),
        left_out=tuple(reasons),
        left_out_count=len(survey.found.left_out) + len(pruned),
        notes=tuple(survey.found.notes),
        captions=tuple(dict.fromkeys(caption for sample in survey.all_samples for caption in sample.captions)),
        samples=survey.samples,
        evaluation=tuple(sample for samples in survey.evaluation.values() for sample in samples),
        batches_per_epoch=epoch.batches,
        steps_per_epoch=epoch.steps,
        epochs=epochs,
    )


def assume_data(config: RunConfig) -> DataPlan | None:
    """A data plan for clips that were not read: one full batch per data set, square and of the wanted size.

    Enough for the cost of a step; None without a data set.
    """
    grid = FAMILIES[str(config.model.model_family)].grid
    lines = []
    for entry in config.datasets:
        size = (entry.resolution * 1e6) ** 0.5 if entry.resolution_type == "area" else entry.resolution
        edge = max(int(size) // grid.spatial, 1) * grid.spatial
        wanted = 1 if entry.dataset_type == "image" else entry.video.num_frames or ASSUMED_FRAMES
        frames = max(wanted - 1, 0) // grid.temporal * grid.temporal + 1
        shape = grid.latent_shape(edge, edge, frames)
        batch = entry.train_batch_size or config.schedule.train_batch_size
        lines.append(BucketLine(BucketKey(edge, edge, frames), 0, 0, batch, shape, math.prod(shape[1:]), 1, batch))
    if not lines:
        return None
    return DataPlan(tuple(lines), (), 0, (), (), (), len(lines), 0, is_assumed=True)


def plan_length(config: RunConfig, data: DataPlan | None) -> RunLength:
    """Steps, epochs, checkpoints and validations of the run."""
    schedule, per_epoch = config.schedule, data.steps_per_epoch if data is not None else 0
    epochs = data.epochs if data is not None else None
    steps = total_steps(schedule, epochs.steps_of if epochs is not None else lambda wanted: 0) or None
    limit, rolling_limit = config.checkpoint.checkpoints_total_limit, config.checkpoint.checkpoints_rolling_total_limit
    rhythms = rhythms_of(config)
    checkpoints = times_due(rhythms.checkpoint, steps or 0, per_epoch)
    rolling = times_due(rhythms.rolling, steps or 0, per_epoch)
    videos = _videos_each(config)
    return RunLength(
        steps=steps,
        epochs=epochs.passed(steps) if steps and epochs is not None else None,
        samples_per_step=_samples_per_step(config, data),
        checkpoints=checkpoints + rolling,
        checkpoints_kept=_kept(checkpoints, limit) + _kept(rolling, rolling_limit),
        validations=_validations(config, rhythms.validation, steps or 0, per_epoch) if videos else 0,
        videos_each=videos,
        evaluations=times_due(rhythms.evaluation, steps or 0, per_epoch) + 1 if config.measures_loss else 0,
        clips_each=_clips_each(config, data),
    )


def rhythms_of(config: RunConfig) -> Rhythms:
    """When a run does what recurs."""
    checkpoint, validation, evaluation = config.checkpoint, config.validation, config.evaluation
    return Rhythms(
        checkpoint=Rhythm(checkpoint.checkpoint_step_interval, checkpoint.checkpoint_epoch_interval or 0),
        rolling=Rhythm(checkpoint.checkpointing_rolling_steps, at_end=False),
        evaluation=Rhythm(evaluation.eval_steps_interval or 0, evaluation.eval_epoch_interval or 0)
        if config.measures_loss
        else Rhythm(at_end=False),
        validation=Rhythm(
            validation.validation_step_interval,
            validation.validation_epoch_interval or 0,
            validation.validate_after_step or 0,
            validation.validate_after_epoch or 0,
        ),
    )


def measures_first_frames(config: RunConfig) -> bool:
    """Whether the run trains image-to-video, so that its evaluation clips are measured that way as well."""
    return bool(config.flow.ltx_i2v_prob) and any(dataset.trains_i2v for dataset in config.datasets)


def video_sizes(config: RunConfig) -> Sequence[tuple[int, int]]:
    """(width, height) of the validation videos; empty where the option cannot be read."""
    try:
        return config.validation.resolutions
    except ValueError:
        return ()  # told by the rule about validation_resolution


def _samples_per_step(config: RunConfig, data: DataPlan | None) -> int:
    largest = max((line.batch_size for line in data.buckets), default=0) if data else 0
    return (largest or config.schedule.train_batch_size) * config.schedule.gradient_accumulation_steps


def _validations(config: RunConfig, rhythm: Rhythm, steps: int, per_epoch: int) -> int:
    settings = config.validation
    extra = (not settings.disable_benchmark) + settings.validation_on_startup
    return times_due(rhythm, steps, per_epoch) + extra


def _clips_each(config: RunConfig, data: DataPlan | None) -> dict[str, int]:
    """Clips measured of each evaluation set."""
    settings = config.evaluation
    if data is None or not config.measures_loss:
        return {}
    there = Counter(sample.dataset for sample in data.evaluation if settings.eval_dataset_id in (None, sample.dataset))
    return {ident: min(count, settings.num_eval_images) for ident, count in there.items()}


def _kept(count: int, limit: int) -> int:
    return min(count, limit) if limit else count


def _videos_each(config: RunConfig) -> int:
    """Videos of one validation; of the clips whose first frames are shown at most so many as there may be."""
    settings = config.validation
    prompts = len(config.prompts) + (CLIPS_SHOWN if settings.validation_using_datasets else 0)
    return 0 if not settings.makes_videos else prompts * len(video_sizes(config)) * settings.num_validation_images
