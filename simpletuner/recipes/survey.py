"""What is known of the data before a weight is loaded and without torch: files, samples, buckets.

`simpletuner check` and `plan` stop here; `plan.py` adds the model and the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Problem, Severity, UserError
from simpletuner.data.batch_rules import BatchRules
from simpletuner.data.buckets import check_buckets
from simpletuner.data.find import FoundSamples, find_samples
from simpletuner.data.notes import summarize_reasons
from simpletuner.data.sample import Sample
from simpletuner.data.storage import Storage, open_storage
from simpletuner.data.tails import BucketPlan, fill_buckets, raise_repeats
from simpletuner.events.types import Event
from simpletuner.recipes.bad_files import leave_out_known


@dataclass(frozen=True)
class Survey:
    """The data of a run.

    Attributes:
        found: Samples and files left out, as found.
        samples: Samples that are trained, after small buckets were pruned.
        storages: Data set id -> where its files lie.
    """

    found: FoundSamples
    samples: tuple[Sample, ...]
    storages: Mapping[str, Storage]


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
    return Survey(replace(found, notes=(*found.notes, *plan.notes)), plan.samples, storages)


def find_data(config: RunConfig, emit: Callable[[Event], None]) -> tuple[FoundSamples, dict[str, Storage]]:
    """All samples of all data sets, whether they fill a batch or not, and where their files lie.

    Raises:
        UserError: If a place cannot be listed, or a data set has no usable file.
    """
    storages = {entry.id: open_storage(entry) for entry in config.datasets}
    grid = FAMILIES[str(config.model.model_family)].grid
    found = find_samples(config.datasets, storages, grid, workers=config.caching.max_workers, emit=emit)
    return leave_out_known(found, config.datasets), storages


def plan_buckets(found: FoundSamples, config: RunConfig) -> BucketPlan:
    """Which of the samples found are trained, and what is to be told about that; see `fill_buckets` for its errors."""
    return fill_buckets(found.samples, batch_rules(config), {entry.id: entry for entry in config.datasets})


def check_sizes(samples: tuple[Sample, ...], config: RunConfig) -> tuple[Sample, ...]:
    """The samples whose buckets can fill a batch; see `check_buckets` for the rule and its errors."""
    rules = batch_rules(config)
    return check_buckets(raise_repeats(samples, rules).samples, rules)


def batch_rules(config: RunConfig, processes: int = 1) -> BatchRules:
    """How draws become batches in this run of `processes` processes."""
    grid = FAMILIES[str(config.model.model_family)].grid
    return BatchRules.from_config(config.schedule, config.data, config.datasets, grid, processes)


def _left_out_notes(found: FoundSamples) -> list[Problem]:
    """Why files were left out, beside the errors: too few clips is often the consequence."""
    return [Problem(f"left out {line}", severity=Severity.NOTE) for line in summarize_reasons(found.left_out)]
