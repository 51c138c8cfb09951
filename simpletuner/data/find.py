"""From folders to samples: list files, read headers, find captions, plan frames and crops.

Every file that is not trained is reported with its reason; nothing is decoded beyond the first
picture, no file is ever changed, and no weights are needed. Next stop: `buckets.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm
from pathlib import PurePosixPath

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import Problem, UserError
from simpletuner.data.captions import find_captions
from simpletuner.data.geometry import (
    Raster,
    align,
    edge_of_area,
    frames_8k1,
    megapixels_of,
    plan_crop,
    plan_frames,
    requested_frames,
)
from simpletuner.data.probe import IMAGE_EXTENSIONS, probe_all
from simpletuner.data.sample import LeftOut, MediaInfo, Sample, Unfit, printable
from simpletuner.data.storage import Storage, StoredFile
from simpletuner.events.types import Event

VIDEO_EXTENSIONS = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif", ".m4v"})
UNFINISHED_EXTENSIONS = frozenset({".part", ".crdownload", ".tmp", ".download"})
EXTENSIONS = {"video": VIDEO_EXTENSIONS, "image": IMAGE_EXTENSIONS}
REASONS_SHOWN = 8  # kinds of reasons in the message about a data set without samples


@dataclass(frozen=True)
class FoundSamples:
    """What the data sets hold.

    Attributes:
        samples: Everything that is trained, in the order of the data sets and of their paths.
        left_out: Every file that is not, with its reason.
        notes: Sentences for the story before step 1: what was rounded, resampled or ignored.
    """

    samples: tuple[Sample, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class MediaListing:
    """The files of one data set that its entry asks for.

    Attributes:
        files: Clips (or pictures), sorted by path.
        unnameable: Files whose name is not UTF-8, with the bytes written out.
        ignored: How many files of each ignored kind were passed over.
    """

    files: tuple[StoredFile, ...]
    unnameable: tuple[str, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)


def find_samples(
    datasets: Sequence[ClipDataset],
    storages: Mapping[str, Storage],
    grid: Raster,
    *,
    workers: int,
    emit: Callable[[Event], None],
) -> FoundSamples:
    """Find what can be trained in `datasets`.

    Args:
        datasets: Entries with all defaults filled in.
        storages: Where the files of each data set lie, by its id.
        grid: The model family's raster; sizes become multiples of `spatial`, counts temporal * k + 1.
        workers: Threads that read headers.
        emit: Receives the progress events of the stage "probe".
    Raises:
        UserError: If a folder is missing or cannot be listed, or a data set has no usable file.
    """
    listings = _list_all(datasets, storages)
    files = [(storages[dataset.id], file.path) for dataset in datasets for file in listings[dataset.id].files]
    media = iter(probe_all(files, workers=workers, emit=emit))
    samples: list[Sample] = []
    left_out: list[LeftOut] = []
    notes: list[str] = []
    problems: list[Problem] = []
    for dataset in datasets:
        listing = listings[dataset.id]
        probed = [(file.path, next(media)) for file in listing.files]
        kept, dropped = _plan_dataset(dataset, storages[dataset.id], listing, probed, grid)
        if not kept:
            problems.append(_no_samples(dataset, storages[dataset.id], listing, dropped))
        samples += kept
        left_out += dropped
        notes += _notes_on(dataset, listing, kept, grid)
    if problems:
        raise UserError.of(problems)
    return FoundSamples(tuple(samples), tuple(left_out), tuple(notes))


# Listing ----------------------------------------------------------------------------------------


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


def list_media(storage: Storage, dataset: ClipDataset) -> MediaListing:
    """The clips (or pictures) that `storage` holds; other kinds and unfinished files are counted.

    Raises:
        UserError: If the place is missing or cannot be listed.
    """
    found = storage.list_files()
    files: list[StoredFile] = []
    ignored: Counter[str] = Counter(found.passed_over)
    for file in found.files:
        kind = _ignored_kind(PurePosixPath(file.path).name, dataset)
        if kind is None:
            files.append(file)
        elif kind:
            ignored[kind] += 1
    unnameable = tuple(path for path in found.unnameable if _ignored_kind(path, dataset) is None)
    return MediaListing(tuple(files), unnameable, dict(ignored))


def _ignored_kind(name: str, dataset: ClipDataset) -> str | None:
    """Why a file is passed over: None if it is not, an empty text if it is no media file at all."""
    extension = PurePosixPath(name).suffix.lower()
    if extension in UNFINISHED_EXTENSIONS:
        return f"unfinished downloads ({extension})"
    if extension in EXTENSIONS[dataset.dataset_type]:
        return None
    other = "image" if dataset.dataset_type == "video" else "video"
    return f"{other} files" if extension in EXTENSIONS[other] else ""


# Planning ---------------------------------------------------------------------------------------


def _plan_dataset(
    dataset: ClipDataset,
    storage: Storage,
    listing: MediaListing,
    probed: Sequence[tuple[str, MediaInfo | Unfit]],
    grid: Raster,
) -> tuple[list[Sample], list[LeftOut]]:
    samples: list[Sample] = []
    left_out = [LeftOut(dataset.id, path, "the file name is not UTF-8; rename it") for path in listing.unnameable]
    for path, info in probed:
        try:
            samples.append(_plan_sample(dataset, storage, path, info, grid))
        except Unfit as unfit:
            left_out.append(LeftOut(dataset.id, path, unfit.reason))
    return samples, left_out


def _plan_sample(dataset: ClipDataset, storage: Storage, path: str, info: MediaInfo | Unfit, grid: Raster) -> Sample:
    if isinstance(info, Unfit):
        raise info
    if info.kind != dataset.dataset_type:
        shown = {"video": "a clip", "image": "a still picture"}
        raise Unfit(f"{shown[info.kind]} in a data set with dataset_type '{dataset.dataset_type}'")
    name = f"{dataset.id}/{path}"
    alignment = lcm(dataset.aspect_bucket_alignment, grid.spatial)
    return Sample(
        dataset=dataset.id,
        path=path,
        info=info,
        frames=plan_frames(info, dataset, grid.temporal, name),
        crop=plan_crop(info.width, info.height, dataset, alignment, name),
        captions=find_captions(storage, path, dataset),
        repeats=dataset.repeats + 1,
    )


def _no_samples(dataset: ClipDataset, storage: Storage, listing: MediaListing, left_out: Sequence[LeftOut]) -> Problem:
    total = len(listing.files) + len(listing.unnameable)
    if not total:
        wanted = " ".join(sorted(EXTENSIONS[dataset.dataset_type]))
        passed_over = ", ".join(f"{count} {kind}" for kind, count in listing.ignored.items())
        return Problem(
            f"dataset '{dataset.id}': no samples detected in dataset. "
            f"The folder '{storage.place}' holds no {dataset.dataset_type} files"
            + (f" ({passed_over} ignored)" if passed_over else ""),
            f"A {dataset.dataset_type} data set looks for {wanted}, sub-folders included",
            "Put files there, or correct instance_data_dir or dataset_type",
        )
    return Problem(
        f"dataset '{dataset.id}': no samples detected in dataset. {total} files, 0 usable: "
        + "; ".join(summarize_reasons(left_out)),
        "At least one file must be usable",
        "Mend the files, or relax the limit that leaves them out (video.min_frames, minimum_image_size, …)",
    )


def summarize_reasons(left_out: Sequence[LeftOut]) -> tuple[str, ...]:
    """One line per kind of reason, most frequent first: how many files, one of them, its reason."""
    groups: dict[str, list[LeftOut]] = {}
    for item in left_out:
        kind = re.sub(r"'[^']*'|[\d.]+", "#", item.reason)
        groups.setdefault(kind, []).append(item)
    ordered = sorted(groups.values(), key=len, reverse=True)
    lines = [
        f"{items[0].shown_path}: {items[0].reason}"
        if len(items) == 1
        else f"{len(items)} files such as {items[0].shown_path}: {items[0].reason}"
        for items in ordered[:REASONS_SHOWN]
    ]
    rest = sum(len(items) for items in ordered[REASONS_SHOWN:])
    return (*lines, f"and {rest} more") if rest else tuple(lines)


# Notes ------------------------------------------------------------------------------------------


def _notes_on(dataset: ClipDataset, listing: MediaListing, samples: Sequence[Sample], grid: Raster) -> list[str]:
    notes = [_note_on_size(dataset, grid), _note_on_count(dataset, grid), *_notes_on_speed(samples)]
    enlarged = [sample for sample in samples if _enlargement(sample) > 1.01]
    if enlarged:
        most = max(enlarged, key=_enlargement)
        scale = f"{_enlargement(most):.2g}×"
        notes.append(f"{len(enlarged)} files are enlarged, most of all {printable(most.path)} ({scale})")
    if listing.ignored:
        notes.append("ignored: " + ", ".join(f"{count} {kind}" for kind, count in sorted(listing.ignored.items())))
    return [f"{dataset.id}: {note}" for note in notes if note]


def _enlargement(sample: Sample) -> float:
    return max(sample.crop.scaled_width / sample.info.width, sample.crop.scaled_height / sample.info.height)


def _note_on_size(dataset: ClipDataset, grid: Raster) -> str:
    alignment = lcm(dataset.aspect_bucket_alignment, grid.spatial)
    edge = (
        int(dataset.resolution)
        if dataset.resolution_type == "pixel"
        else edge_of_area(megapixels_of(dataset.resolution, dataset.resolution_type))
    )
    aligned = align(edge, alignment)
    if aligned == edge:
        return ""
    return (
        f"resolution {dataset.resolution:g} ({dataset.resolution_type}) is an edge of {edge} px, trained as {aligned} "
        f"(multiples of {alignment})"
    )


def _note_on_count(dataset: ClipDataset, grid: Raster) -> str:
    wanted = requested_frames(dataset, grid.temporal)
    if dataset.dataset_type == "image" or wanted is None:
        return ""
    interval = dataset.video.frame_interval if dataset.video.bucket_strategy == "resolution_frames" else None
    floored = interval * (wanted // interval) if interval else wanted
    used = frames_8k1(max(1, floored), grid.temporal)
    if used == wanted:
        return ""
    return f"{wanted} frames are trained as {used} (the model takes {grid.temporal}k+1)"


def _notes_on_speed(samples: Sequence[Sample]) -> list[str]:
    clips = [sample for sample in samples if sample.info.kind == "video"]
    resampled = [clip for clip in clips if abs(clip.info.frame_rate / clip.frames.frame_rate - 1) > 0.01]
    notes = []
    if resampled:
        rates = sorted({clip.info.frame_rate for clip in resampled})
        slow = sum(rate < clip.frames.frame_rate for clip in resampled for rate in [clip.info.frame_rate])
        shown = " to ".join(f"{rate:.4g}" for rate in dict.fromkeys([rates[0], rates[-1]]))
        notes.append(
            f"{len(resampled)} clips of {shown} fps are resampled to {resampled[0].frames.frame_rate:g} fps "
            "at true speed" + (f"; {slow} of them repeat frames" if slow else "")
        )
    rates = sorted({clip.frames.frame_rate for clip in clips})
    if len(rates) > 1:
        notes.append(f"clips keep their own frame rates, {rates[0]:.4g} to {rates[-1]:.4g} fps, and true speed")
    return notes
