"""What is known of the data before a weight is loaded and without torch: files, samples, buckets.

`simpletuner check` and `plan` stop here; `plan.py` adds the model and the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Problem, Severity, UserError
from simpletuner.data.buckets import check_buckets
from simpletuner.data.find import FoundSamples, find_samples, summarize_reasons
from simpletuner.data.sample import Sample
from simpletuner.data.storage import Storage, open_storage
from simpletuner.events.types import Event


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
    storages = {entry.id: open_storage(entry) for entry in config.datasets}
    grid = FAMILIES[str(config.model.model_family)].grid
    found = find_samples(config.datasets, storages, grid, workers=config.caching.max_workers, emit=emit)
    try:
        samples = check_sizes(found.samples, config)
    except UserError as error:
        raise UserError.of([*error.problems, *_left_out_notes(found)]) from error
    return Survey(found, samples, storages)


def check_sizes(samples: tuple[Sample, ...], config: RunConfig) -> tuple[Sample, ...]:
    """The samples whose buckets can fill a batch; see `check_buckets` for the rule and its errors."""
    return check_buckets(
        samples,
        batch_size=config.schedule.train_batch_size,
        accumulation=config.schedule.gradient_accumulation_steps,
        disable_bucket_pruning=config.data.disable_bucket_pruning,
    )


def _left_out_notes(found: FoundSamples) -> list[Problem]:
    """Why files were left out, beside the errors: too few clips is often the consequence."""
    return [Problem(f"left out {line}", severity=Severity.NOTE) for line in summarize_reasons(found.left_out)]
