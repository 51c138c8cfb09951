"""The caches of a run without the run: fill them, look at them, verify them, clear them.

`cli/cache.py` asks for these. Filling is the same code as in training (`encode.py`), so that nothing can be cached in
one way and wanted in another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from simpletuner.caching.features import KIND as FEATURES
from simpletuner.caching.latents import KIND as LATENTS
from simpletuner.caching.latents import find_work
from simpletuner.caching.prompts import KIND as PROMPT
from simpletuner.caching.prompts import find_keys
from simpletuner.caching.prune import Waste, find_waste, remove_waste
from simpletuner.caching.quantized_base import kept_bytes
from simpletuner.caching.store import EntryReader, Key, judge_entries
from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Problem, UserError
from simpletuner.core.files import ensure_writable
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted
from simpletuner.models.family import ModelFamily
from simpletuner.recipes.encode import fill_caches, latent_settings, prompt_settings, texts_of
from simpletuner.recipes.fitting import fit_to_memory
from simpletuner.recipes.plan import RunPlan, cache_folders
from simpletuner.recipes.quantized import KeptForRun, find_kept, judge_kept, kept_root
from simpletuner.recipes.survey import survey_data
from simpletuner.recipes.teaching import feature_keys, prepare_teaching
from simpletuner.runtime.host import find_host
from simpletuner.runtime.signals import listen_to_signals
from simpletuner.training.build import load_frozen, weight_dtype

TEXTS = "captions and prompts"
BASE = "quantized base model"


def feature_store(dataset: str) -> str:
    """What the teacher's features of a data set are called in reports."""
    return f"{dataset} (features)"


@dataclass(frozen=True)
class CacheReport:
    """One store of entries compared with what the configuration wants.

    Attributes:
        name: Id of the data set, "captions and prompts", or "quantized base model".
        folder: Where it lies.
        wanted: Entries that training needs.
        usable: Those that are there and pass.
        usable_bytes: Their size on the disk.
        missing: Those that are not there at all.
        damaged: Those that are there but do not pass, each with the reason.
        stale: Entries of the same kind in the folder that this configuration does not want.
        stale_bytes: Their size on the disk.
    """

    name: str
    folder: Path
    wanted: int
    usable: int
    usable_bytes: int
    missing: int
    damaged: tuple[tuple[str, str], ...]
    stale: int
    stale_bytes: int

    @property
    def is_complete(self) -> bool:
        return self.usable == self.wanted

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **vars(self),
            "folder": str(self.folder),
            "damaged": [{"entry": entry, "reason": reason} for entry, reason in self.damaged],
            "is_complete": self.is_complete,
        }


def build_caches(config: RunConfig, emit: Callable[[Event], None]) -> bool:
    """Encode everything that training will need; several processes may do this at once.

    Whatever is set to be encoded on demand is encoded now too. Returns whether every clip could be encoded.

    Raises:
        UserError: With every problem found, or if the disk fills up (exit code 6; finished entries stay).
    """
    with listen_to_signals(lambda text: None):
        config, plan = open_cache_plan(config, emit, writes=True)
        for note in plan.found.notes:
            emit(Noticed("note", note))
        host = find_host()
        latents, _ = fill_caches(config, plan, host, emit, all_now=True)
        prepare_teaching(config, plan, host, latents, emit)
        quantize_base(config, plan, emit)
        return not latents.left_out


def quantize_base(config: RunConfig, plan: RunPlan, emit: Callable[[Event], None]) -> None:
    """Make and keep the quantized base model, if the run has one and it is not there in good order."""
    base = find_kept(config, plan.family, plan.source)
    if base is None or (base.exists() and not judge_kept(base, base.root, verify=True)[0]):
        return
    device, dtype = torch.device(base.place), weight_dtype(config.precision)
    load_frozen(plan.family, plan.source, config.precision, dtype, device, KeptForRun(base, emit))


def report_caches(config: RunConfig, emit: Callable[[Event], None], *, verify: bool) -> list[CacheReport]:
    """Compare what is there with what training needs; no model is loaded and nothing is changed.

    Args:
        config: The resolved configuration.
        emit: Receives the progress of listing the files.
        verify: Whether every byte of every wanted entry is read; otherwise headers only.

    Raises:
        UserError: With every problem found.
    """
    started = time.monotonic()
    config, plan = open_cache_plan(config, emit, writes=False)
    wanted = wanted_entries(config, plan)
    folders = {TEXTS: plan.prompt_folder, **plan.latent_folders}
    folders |= {feature_store(name): folder for name, folder in plan.latent_folders.items()}
    reader = EntryReader(dict.fromkeys(folders.values()))
    stale = _count_stale(reader, wanted, folders)
    emit(StageStarted("cache", "Verifying entries" if verify else "Looking at entries", len(wanted), "stores"))
    reports = []
    for (_, name), keys in wanted.items():
        usable, damaged = judge_entries(reader, keys, verify=verify, workers=config.caching.max_workers)
        count, size = stale[name]
        reports.append(
            CacheReport(
                name=name,
                folder=folders[name],
                wanted=len(keys),
                usable=len(usable),
                usable_bytes=sum(reader.stored_bytes(key) for key in usable),
                missing=len(keys) - len(usable) - len(damaged),
                damaged=tuple((key.name, reason) for key, reason in damaged),
                stale=count,
                stale_bytes=size,
            )
        )
        emit(StageAdvanced("cache", len(reports), detail=name))
    reports += report_base(config, plan, verify=verify)
    emit(StageFinished("cache", len(reports), time.monotonic() - started))
    return reports


def report_base(config: RunConfig, plan: RunPlan, *, verify: bool) -> list[CacheReport]:
    """The quantized base model, if there is one or one is wanted."""
    base, root = find_kept(config, plan.family, plan.source), kept_root(config)
    reason, stale = judge_kept(base, root, verify=verify)
    if base is None and not stale:
        return []
    there = base is not None and base.exists()
    return [
        CacheReport(
            name=BASE,
            folder=root,
            wanted=int(base is not None),
            usable=int(there and not reason),
            usable_bytes=kept_bytes(base.folder) if base is not None and there and not reason else 0,
            missing=int(base is not None and not there),
            damaged=((base.precision, reason),) if base is not None and reason else (),
            stale=len(stale),
            stale_bytes=sum(size for _, size in stale),
        )
    ]


def _count_stale(
    reader: EntryReader, wanted: Mapping[tuple[str, str], Sequence[Key]], folders: Mapping[str, Path]
) -> dict[str, tuple[int, int]]:
    """Name of the store -> number and bytes of entries that nothing wants; each counts where it lies deepest."""
    counted = dict.fromkeys(folders, (0, 0))
    for kind in (LATENTS, PROMPT, FEATURES):
        names = [name for other, name in wanted if other == kind]
        keys = [key for (other, _), entries in wanted.items() if other == kind for key in entries]
        for place, size in reader.unwanted(keys, kind):
            path = place if isinstance(place, Path) else place.path
            inside = [name for name in names if folders[name] in path.parents]
            # An entry of one kind in the folder of the other belongs to no store of its kind.
            for name in sorted(inside, key=lambda name: -len(folders[name].parts))[:1]:
                count, total = counted[name]
                counted[name] = (count + 1, total + size)
    return counted


def find_cache_waste(config: RunConfig, emit: Callable[[Event], None]) -> Waste:
    """What `prune_caches` would remove: entries that this configuration does not want, and damaged ones."""
    config, plan = open_cache_plan(config, emit, writes=False)
    keys: dict[str, list[Key]] = {LATENTS: [], PROMPT: [], FEATURES: []}
    for (kind, _), entries in wanted_entries(config, plan).items():
        keys[kind] += entries
    waste = find_waste(keys, cache_folders(config), workers=config.caching.max_workers)
    base = find_kept(config, plan.family, plan.source)
    reason, stale = judge_kept(base, kept_root(config), verify=True)
    damaged = [(base.folder, kept_bytes(base.folder), reason)] if base is not None and reason else []
    return replace(waste, models=(*damaged, *((folder, size, "") for folder, size in stale)))


def prune_caches(config: RunConfig, waste: Waste, emit: Callable[[Event], None]) -> None:
    """Remove what `find_cache_waste` found.

    Raises:
        UserError: If another process is filling one of the caches.
    """
    emit(StageStarted("prune", "Removing entries", waste.entries, "entries"))
    remove_waste(waste, cache_folders(config), lambda done: emit(StageAdvanced("prune", done)))


def open_cache_plan(config: RunConfig, emit: Callable[[Event], None], *, writes: bool) -> tuple[RunConfig, RunPlan]:
    """The run's plan as far as its caches need it, and its configuration made to fit into memory; checkpoints and the
    run folder do not matter.

    Raises:
        UserError: With every problem found.
    """
    family: ModelFamily = FAMILIES.load(str(config.model.model_family))
    problems: list[Problem] = []
    looks: list[Callable[[], Any]] = [partial(family.resolve, config.model), partial(survey_data, config, emit)]
    if writes:
        looks += [partial(ensure_writable, folder, "cache folder") for folder in cache_folders(config)]
    found: list[Any] = []
    for look in looks:
        try:
            found.append(look())
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError.of(problems)
    source, survey = found[:2]
    plan = RunPlan(
        family=family,
        source=source,
        found=survey.found,
        samples=survey.samples,
        storages=survey.storages,
        latent_folders={entry.id: Path(str(entry.cache_dir_vae)) for entry in config.all_datasets},
        prompt_folder=Path(str(config.text_embeds.cache_dir)),
        checkpoint=None,
        evaluation=survey.evaluation,
    )
    return fit_to_memory(config, plan, find_host(), emit), plan


def wanted_entries(config: RunConfig, plan: RunPlan) -> dict[tuple[str, str], list[Key]]:
    """(kind, name of the store) -> the entries that training needs there."""
    wanted: dict[tuple[str, str], list[Key]] = {(LATENTS, entry.id): [] for entry in config.all_datasets}
    device = find_host().device
    settings = latent_settings(config, plan, device)
    kept = [sample for sample in plan.all_samples if sample.dataset not in settings.redrawn]
    for item in find_work(kept, plan.latent_folders, settings).values():
        wanted[LATENTS, item.sample.dataset].append(item.key)
    for name, keys in feature_keys(config, plan, device).items():
        wanted[FEATURES, feature_store(name)] = keys
    wanted[PROMPT, TEXTS] = list(find_keys(texts_of(config, plan), prompt_settings(config, plan)).values())
    return wanted
