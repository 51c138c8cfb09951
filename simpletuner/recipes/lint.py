"""`simpletuner data lint`: everything worth mending about the data, at once, without torch and without training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Problem, Severity, UserError
from simpletuner.data.buckets import draws_per_epoch, group_by_bucket
from simpletuner.data.findings import Finding, find_all
from simpletuner.data.looks import Looks, take_looks
from simpletuner.data.sample import Sample
from simpletuner.events.types import Event
from simpletuner.recipes.bad_files import forget_known, keep_damaged
from simpletuner.recipes.survey import find_data, plan_buckets

FORMAT = "simpletuner-lint-1"


@dataclass(frozen=True)
class LintReport:
    """What was found.

    Attributes:
        problems: Errors that stop a run.
        findings: Everything else, gravest first.
        samples: Samples found, before small buckets were pruned.
        trained: Samples that are trained.
        files: How many files there are, used or not.
        retried: Files taken off the quarantine lists before.
    """

    problems: tuple[Problem, ...]
    findings: tuple[Finding, ...] = ()
    samples: tuple[Sample, ...] = ()
    trained: tuple[Sample, ...] = ()
    files: int = 0
    retried: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def worst(self) -> Severity | None:
        """The gravest severity among problems and findings; None if there is nothing to tell."""
        found = {item.severity for item in self.problems} | {item.severity for item in self.findings}
        return next((severity for severity in Severity if severity in found), None)

    def as_document(self) -> dict[str, Any]:
        """A JSON-ready record for scripts; keys are only ever added."""
        return {
            "format": FORMAT,
            "verdict": self.worst.value if self.worst else "clean",
            "files": self.files,
            "samples": len(self.samples),
            "trained": len(self.trained),
            "retried": self.retried,
            "problems": [
                {"severity": item.severity.value, "what": item.what, "rule": item.rule, "fix": item.fix}
                for item in self.problems
            ],
            "findings": [
                {
                    "kind": item.kind,
                    "severity": item.severity.value,
                    "dataset": item.dataset,
                    "path": item.path,
                    "sample": item.sample,
                    "what": item.what,
                    "fix": item.fix,
                    "others": list(item.others),
                }
                for item in self.findings
            ],
            "buckets": [
                {"bucket": str(bucket), "samples": len(members), "draws_per_epoch": draws_per_epoch(members)}
                for bucket, members in group_by_bucket(self.trained).items()
            ],
            "notes": list(self.notes),
        }


def lint_data(
    config: RunConfig, emit: Callable[[Event], None], *, frames: bool = True, retry: bool = False
) -> LintReport:
    """Look at all data sets of `config`; damaged files go to the quarantine lists, none is moved.

    Args:
        config: The run whose data is looked at.
        emit: Receives progress.
        frames: Whether to decode some frames of every sample; without, only headers and captions are looked at.
        retry: Whether files on the quarantine lists are tried again.
    """
    retried = forget_known(config.all_datasets) if retry else 0
    try:
        found, storages = find_data(config, emit)
    except UserError as error:
        return LintReport(error.problems, retried=retried)
    problems: tuple[Problem, ...] = ()
    measured = {entry.id for entry in config.eval_datasets}
    trained = tuple(sample for sample in found.samples if sample.dataset not in measured)
    try:
        trained = plan_buckets(found, config).samples
    except UserError as error:
        problems = error.problems
    looks = Looks()
    if frames:
        looks = take_looks(found.samples, config.all_datasets, storages, workers=config.caching.max_workers, emit=emit)
    failed = {(item.dataset, item.path) for item in looks.failed}
    trained = tuple(sample for sample in trained if (sample.dataset, sample.path) not in failed)
    keep_damaged(config, storages, found.samples, found.left_out, "probe", emit, moves=False)
    keep_damaged(config, storages, found.samples, looks.failed, "decode", emit, moves=False)
    findings = find_all(
        found.samples,
        trained,
        found.left_out,
        storages,
        looks,
        token_length=config.model.tokenizer_max_length,
        batch_size=config.schedule.train_batch_size,
        untrained=measured,
    )
    files = {(item.dataset, item.path) for item in found.samples}
    files |= {(item.dataset, item.path) for item in found.left_out}
    return LintReport(problems, findings, found.samples, trained, len(files), retried, found.notes)
