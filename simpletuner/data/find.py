"""From folders to samples: list files, learn what they hold, find captions, plan windows and crops.

Every file that is not trained is reported with its reason; no file is ever changed, and no weights
are needed. Listing is done by `listing.py`, reading by `scan.py`, which remembers in `index.py`.
Next stop: `buckets.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import lcm
from typing import TypeVar, cast

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import Problem, UserError
from simpletuner.data.captions import CaptionReader
from simpletuner.data.geometry import Raster, plan_crop, plan_windows
from simpletuner.data.listing import MediaListing, list_media
from simpletuner.data.notes import no_samples, notes_on
from simpletuner.data.sample import DamagedMedia, Freedom, LeftOut, MediaInfo, Sample, Unfit
from simpletuner.data.scan import Shelf, open_shelves, scan
from simpletuner.data.storage import Storage
from simpletuner.events.types import Event

Plan = TypeVar("Plan")


@dataclass(frozen=True)
class FoundSamples:
    """What the data sets hold.

    Attributes:
        samples: Everything that is trained, in the order of the data sets, of their paths and of time.
        left_out: Every file, or scene of a file, that is not, with its reason.
        notes: Sentences for the story before step 1: what was rounded, resampled or ignored.
    """

    samples: tuple[Sample, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def find_samples(
    datasets: Sequence[ClipDataset],
    storages: Mapping[str, Storage],
    grid: Raster,
    *,
    workers: int,
    emit: Callable[[Event], None],
) -> FoundSamples:
    """Find what can be trained in `datasets`.

    What is learnt of the files is kept in the index in each data set's `cache_dir_vae`, which is
    created for it; where that is not possible a note says so.

    Args:
        datasets: Entries with all defaults filled in.
        storages: Where the files of each data set lie, by its id.
        grid: The model family's raster; sizes become multiples of `spatial`, counts temporal * k + 1.
        workers: Threads that read headers.
        emit: Receives the progress events of the stages "probe" and "scenes".
    Raises:
        UserError: If a folder is missing or cannot be listed, or a data set has no usable file.
    """
    listings = _list_all(datasets, storages)
    with ExitStack() as opened:
        shelves = open_shelves(datasets, storages, listings, opened)
        scan(shelves, workers=workers, emit=emit)
        plans = [_plan_dataset(shelf, grid, workers) for shelf in shelves]
    problems = [plan.problem for plan in plans if plan.problem]
    if problems:
        raise UserError.of(problems)
    return FoundSamples(
        tuple(sample for plan in plans for sample in plan.samples),
        tuple(item for plan in plans for item in plan.left_out),
        tuple(note for plan in plans for note in plan.notes),
    )


def _list_all(datasets: Sequence[ClipDataset], storages: Mapping[str, Storage]) -> dict[str, MediaListing]:
    listings: dict[str, MediaListing] = {}
    problems: list[Problem] = []
    for dataset in datasets:
        try:
            _check_settings(dataset)
            listings[dataset.id] = list_media(storages[dataset.id], dataset)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError.of(problems)
    return listings


def _check_settings(dataset: ClipDataset) -> None:
    if dataset.crop and dataset.crop_aspect in ("closest", "random") and not dataset.crop_aspect_buckets:
        raise UserError(
            f"data set '{dataset.id}' has crop_aspect '{dataset.crop_aspect}' but no crop_aspect_buckets",
            "The shapes to choose from must be listed",
            'Add for example "crop_aspect_buckets": [0.75, 1.0, 1.33]',
        )


# One data set -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _DatasetPlan:
    samples: Sequence[Sample]
    left_out: Sequence[LeftOut]
    notes: Sequence[str]
    problem: Problem | None


def _plan_dataset(shelf: Shelf, grid: Raster, workers: int) -> _DatasetPlan:
    dataset, listing = shelf.dataset, shelf.listing
    captions = CaptionReader(dataset, shelf.storage, listing.everything, shelf.table, shelf.index)
    usable = [path for path in shelf.files if isinstance(shelf.media[path], MediaInfo)]
    captions.read_ahead(usable, workers)
    planner = _Planner(shelf, captions, grid)
    for path in shelf.files:
        planner.plan(path)
    shelf.index.flush()
    samples, left_out = planner.samples, planner.left_out
    problem = captions.problem()
    if not samples and problem is None:
        problem = no_samples(dataset, shelf.storage, listing, left_out)
    notes = [*notes_on(dataset, listing, samples, planner.spare_frames, grid), *captions.notes, *shelf.index.notes]
    return _DatasetPlan(samples, left_out, [f"{dataset.id}: {note}" for note in notes], problem)


class _Planner:
    """Plans the files of one data set one after the other."""

    def __init__(self, shelf: Shelf, captions: CaptionReader, grid: Raster) -> None:
        self._shelf = shelf
        self._captions = captions
        self._grid = grid
        self._alignment = lcm(shelf.dataset.aspect_bucket_alignment, grid.spatial)
        self._met: dict[object, object] = {}
        self.samples: list[Sample] = []
        self.spare_frames = 0
        self.left_out = [
            LeftOut(shelf.dataset.id, path, "the file name is not UTF-8; rename it")
            for path in shelf.listing.unnameable
        ]

    def plan(self, path: str) -> None:
        """Add the samples of one file, or the reason why there are none."""
        try:
            self.samples += self._plan_file(path, self._shelf.media[path])
        except Unfit as unfit:
            damaged = isinstance(unfit, DamagedMedia)
            self.left_out.append(LeftOut(self._shelf.dataset.id, path, unfit.reason, damaged=damaged))

    def _plan_file(self, path: str, info: MediaInfo | Unfit) -> list[Sample]:
        dataset = self._shelf.dataset
        if isinstance(info, Unfit):
            raise info
        if info.kind not in dataset.kinds:
            shown = {"video": "a clip", "image": "a still picture"}
            raise Unfit(f"{shown[info.kind]} in a data set with dataset_type '{dataset.dataset_type}'")
        name = f"{dataset.id}/{path}"
        windows = plan_windows(info, dataset, self._grid.temporal, name, self._shelf.cuts.get(path, ()))
        crops = [
            plan_crop(info.width, info.height, dataset, self._alignment, f"{name}#{part + 1}" if part else name)
            for part in range(len(windows.plans))
        ]
        captions = self._captions.read(path)
        self.spare_frames += windows.spare_frames
        self.left_out += [LeftOut(dataset.id, path, reason, part=part) for part, reason in windows.unused]
        return [
            Sample(
                dataset=dataset.id,
                path=path,
                info=info,
                frames=self._shared(frames),
                crop=self._shared(crop),
                captions=captions,
                repeats=1 if dataset.is_evaluation else dataset.repeats + 1,
                part=part,
                is_i2v=dataset.trains_i2v,
                is_prior=dataset.is_regularisation_data and not dataset.is_evaluation,
                freedom=_freedom(dataset, info, windows.ranges[part]) if dataset.is_redrawn else None,
            )
            for part, (frames, crop) in enumerate(zip(windows.plans, crops, strict=True))
        ]

    def _shared(self, plan: Plan) -> Plan:
        """The first plan met that equals `plan`: most files of a set have one of a few, and each takes memory."""
        return cast(Plan, self._met.setdefault(plan, plan))


def _freedom(dataset: ClipDataset, info: MediaInfo, begins: tuple[float, int]) -> Freedom:
    """Where a sample of a set that is drawn anew in each epoch may lie."""
    moves_frames = info.kind == "video" and dataset.video.frame_sampling == "random"
    return Freedom(dataset.crop and dataset.crop_style == "random", *(begins if moves_frames else (0.0, 0)))
