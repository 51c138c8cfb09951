"""What is known of the data before a weight is loaded and without torch: files, samples, buckets.

`simpletuner check` and `plan` stop here; `plan.py` adds the model and the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.run_config import RunConfig
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.core.errors import Problem, Severity, UserError
from simpletuner.data.batch_rules import BatchRules
from simpletuner.data.buckets import check_buckets
from simpletuner.data.epochs import Epochs, total_steps
from simpletuner.data.find import FoundSamples, find_samples
from simpletuner.data.foreign_letters import tell_foreign
from simpletuner.data.notes import summarize_reasons
from simpletuner.data.sample import LeftOut, Sample
from simpletuner.data.storage import Storage, open_storage
from simpletuner.data.tails import BucketPlan, fill_buckets, raise_repeats
from simpletuner.events.types import Event
from simpletuner.recipes.bad_files import leave_out_known


@dataclass(frozen=True)
class Survey:
    """The data of a run.

    Attributes:
        found: Samples of trained sets as found; files left out, and notes, of all.
        samples: Samples that are trained, after small buckets were pruned.
        storages: Data set id -> where its files lie.
        evaluation: Data set id -> its samples, in the order of their paths and of time; for each set that is never
            trained, on which the loss is measured.
    """

    found: FoundSamples
    samples: tuple[Sample, ...]
    storages: Mapping[str, Storage]
    evaluation: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)

    @property
    def all_samples(self) -> tuple[Sample, ...]:
        """Everything that is encoded: trained samples first, then those for evaluation."""
        return (*self.samples, *(sample for samples in self.evaluation.values() for sample in samples))


def survey_data(config: RunConfig, emit: Callable[[Event], None]) -> Survey:
    """List the files of all data sets, read their headers, plan samples and prove that buckets fill.

    Raises:
        UserError: With every problem found, and notes on files left out beside them.
    """
    found, storages = find_data(config, emit)
    try:
        plan = plan_buckets(found, config)
    except UserError as error:
        raise UserError.of([*error.problems, *_left_out_notes(found)]) from error
    evaluation = evaluation_samples(found, config)
    mix = tuple(tell_mix(Epochs(plan.samples, batch_rules(config)), config.schedule))
    notes = (*found.notes, *plan.notes, *mix, *_trained_too(plan.samples, evaluation, storages))
    trained = tuple(sample for sample in found.samples if sample.dataset not in evaluation)
    return Survey(replace(found, samples=trained, notes=notes), plan.samples, storages, evaluation)


def find_data(config: RunConfig, emit: Callable[[Event], None]) -> tuple[FoundSamples, dict[str, Storage]]:
    """All samples of all data sets, whether they fill a batch or not, and where their files lie.

    Raises:
        UserError: If a place cannot be listed, or a data set has no usable file.
    """
    storages = {entry.id: open_storage(entry) for entry in config.all_datasets}
    grid = FAMILIES[str(config.model.model_family)].grid
    found = find_samples(config.all_datasets, storages, grid, workers=config.caching.max_workers, emit=emit)
    return leave_out_known(found, config.all_datasets), storages


def plan_buckets(found: FoundSamples, config: RunConfig) -> BucketPlan:
    """Which of the samples found are trained, and what is to be told about that; see `fill_buckets` for its errors."""
    datasets = {entry.id: entry for entry in config.datasets}
    return fill_buckets([one for one in found.samples if one.dataset in datasets], batch_rules(config), datasets)


def pruned_samples(found: FoundSamples, trained: Sequence[Sample]) -> list[LeftOut]:
    """Samples that were found, but whose bucket cannot fill a batch."""
    kept = {sample.name for sample in trained}  # their cut or repeats may have changed since they were found
    return [
        LeftOut(sample.dataset, sample.path, f"bucket {sample.bucket} holds fewer samples than one batch")
        for sample in found.samples
        if sample.name not in kept
    ]


def evaluation_samples(found: FoundSamples, config: RunConfig) -> dict[str, tuple[Sample, ...]]:
    """Data set id -> samples of each set for evaluation; a bucket of one clip is enough there."""
    samples: dict[str, list[Sample]] = {entry.id: [] for entry in config.eval_datasets}
    for sample in found.samples:
        if sample.dataset in samples:
            samples[sample.dataset].append(sample)
    return {ident: tuple(members) for ident, members in samples.items()}


def check_sizes(samples: tuple[Sample, ...], config: RunConfig) -> tuple[Sample, ...]:
    """The samples whose buckets can fill a batch; see `check_buckets` for the rule and its errors."""
    rules = batch_rules(config)
    return check_buckets(raise_repeats(samples, rules).samples, rules)


def foreign_captions(config: RunConfig, samples: Sequence[Sample]) -> str:
    """A sentence on captions that the release's own text encoder hardly reads; empty without such, or with another."""
    return "" if config.model.pretrained_t5_model_name_or_path else tell_foreign(samples)


def batch_rules(config: RunConfig, processes: int = 1) -> BatchRules:
    """How draws become batches in this run of `processes` processes."""
    grid = FAMILIES[str(config.model.model_family)].grid
    return BatchRules.from_config(config.schedule, config.data, config.datasets, grid, processes)


def tell_mix(epochs: Epochs, schedule: ScheduleSection) -> Iterator[str]:
    """A sentence per change of the data sets that take part, and per set that never does.

    Raises:
        UserError: If there is an epoch in which none does.
    """
    steps = total_steps(schedule, epochs.steps_of)
    taking = epochs.at(1, 0).datasets
    for start, joining, leaving in epochs.changes(steps):
        words = [f"{', '.join(sorted(ids))} {verb}" for ids, verb in ((joining, "joins"), (leaving, "leaves")) if ids]
        yield f"{' and '.join(words)} with epoch {start.epoch}, which begins after step {start.step}"
        taking |= joining
    for ident in epochs.datasets:
        if ident not in taking:
            yield f"{ident} never takes part: no epoch reaches its start before the run ends at step {steps}"


def _trained_too(
    samples: Sequence[Sample], evaluation: Mapping[str, Sequence[Sample]], storages: Mapping[str, Storage]
) -> Iterator[str]:
    """A sentence per evaluation set that holds files which are trained as well."""
    if not evaluation:
        return
    trained = {_file_of(sample, storages): sample for sample in samples}
    for ident, members in evaluation.items():
        places = {_file_of(sample, storages): sample.path for sample in members}
        shared = [place for place in places if place in trained]
        if shared:
            yield (
                f"{ident}: {len(shared)} of its {len(places)} files are trained too, such as {places[shared[0]]} by "
                f"'{trained[shared[0]].dataset}'; the loss on them does not tell how well the rest is learnt"
            )


def _file_of(sample: Sample, storages: Mapping[str, Storage]) -> str:
    storage = storages[sample.dataset]
    local = storage.local_path(sample.path)
    return str(local.absolute()) if local is not None else f"{storage.place}/{sample.path}"


def _left_out_notes(found: FoundSamples) -> list[Problem]:
    """Why files were left out, beside the errors: too few clips is often the consequence."""
    return [Problem(f"left out {line}", severity=Severity.NOTE) for line in summarize_reasons(found.left_out)]
