"""Everything that can be known before a weight is loaded: model found, clips probed, buckets filled.

Whatever can fail for a reason the user can mend fails here, in seconds, and all of it at once where
it is independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.run_config import RunConfig
from simpletuner.config.sections.checkpoint import CheckpointSection
from simpletuner.core.errors import Problem, UserError
from simpletuner.core.files import ensure_writable
from simpletuner.data.find import FoundSamples
from simpletuner.data.sample import Sample
from simpletuner.data.storage import Storage
from simpletuner.events.types import Event
from simpletuner.models.family import ModelFamily, Source
from simpletuner.models.vision_teacher import find_teacher
from simpletuner.recipes.survey import survey_data
from simpletuner.training.checkpoint import find_checkpoint, refuse_mixed_runs

Found = TypeVar("Found")


@dataclass(frozen=True)
class RunPlan:
    """What the run will work on.

    Attributes:
        family: Architecture.
        source: Where the model's components lie, and which release it is.
        found: Samples and files left out, as found on the disk.
        samples: Samples that are trained, after small buckets were pruned.
        storages: Data set id -> where its files lie.
        latent_folders: Data set id -> folder of its encoded clips.
        prompt_folder: Folder of the encoded captions.
        checkpoint: Checkpoint to continue from, None for a fresh start.
        evaluation: Data set id -> samples of each set that is never trained, on which the loss is measured; empty
            without such sets. They are encoded with the others by `fill_caches`; one whose clip cannot be decoded is
            then not held by the cache (`LatentCache.holds`).
    """

    family: ModelFamily
    source: Source
    found: FoundSamples
    samples: tuple[Sample, ...]
    storages: Mapping[str, Storage]
    latent_folders: Mapping[str, Path]
    prompt_folder: Path
    checkpoint: Path | None
    evaluation: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)

    @property
    def all_samples(self) -> tuple[Sample, ...]:
        """Everything that is encoded: trained samples first, then those for evaluation."""
        return (*self.samples, *(sample for samples in self.evaluation.values() for sample in samples))


def plan_run(config: RunConfig, emit: Callable[[Event], None]) -> RunPlan:
    """Find model, clips and checkpoint, and prove that the run can start.

    Raises:
        UserError: With every problem found; nothing has been loaded or written then, apart from
            the run's own folder.
    """
    family: ModelFamily = FAMILIES.load(str(config.model.model_family))
    problems: list[Problem] = []
    source = _collect(problems, lambda: family.resolve(config.model))
    checkpoint = _collect(problems, lambda: find_start(config.checkpoint))
    for folder in cache_folders(config):
        _collect(problems, partial(ensure_writable, folder, "cache folder"))
    survey = _collect(problems, lambda: survey_data(config, emit))
    if config.crepa.needs_encoder:
        _collect(problems, lambda: find_teacher(config.crepa.crepa_encoder))
    if problems:
        raise UserError.of(problems)
    assert source is not None
    assert survey is not None
    return RunPlan(
        family=family,
        source=source,
        found=survey.found,
        samples=survey.samples,
        storages=survey.storages,
        latent_folders={entry.id: Path(str(entry.cache_dir_vae)) for entry in config.all_datasets},
        prompt_folder=Path(str(config.text_embeds.cache_dir)),
        checkpoint=checkpoint,
        evaluation=survey.evaluation,
    )


def find_start(settings: CheckpointSection) -> Path | None:
    """The checkpoint to continue from, None for a fresh start in a folder without checkpoints.

    Raises:
        UserError: If it is missing or broken, or if the folder holds checkpoints of later steps.
    """
    folder, request = Path(settings.output_dir), settings.resume_from_checkpoint
    checkpoint = find_checkpoint(folder, request)
    if request != "latest":
        refuse_mixed_runs(folder, checkpoint)
    return checkpoint


def cache_folders(config: RunConfig) -> list[Path]:
    """Every folder that holds encoded clips or captions of this run, each once."""
    latents = [Path(str(entry.cache_dir_vae)) for entry in config.all_datasets]
    return list(dict.fromkeys([*latents, Path(str(config.text_embeds.cache_dir))]))


def _collect(problems: list[Problem], look: Callable[[], Found]) -> Found | None:
    """Do `look`; on a user's mistake note its problems, so that the next look still happens."""
    try:
        return look()
    except UserError as error:
        problems.extend(error.problems)
        return None
