"""Sentences on what a data set holds: what was rounded, resampled, enlarged or passed over, and why files are left out.

Words and counts only; what they tell about was decided in `find.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import lcm

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.counting import counted
from simpletuner.core.errors import Problem
from simpletuner.data.geometry import Raster, align, edge_of_area, frames_8k1, megapixels_of, requested_frames
from simpletuner.data.listing import MediaListing, endings_of
from simpletuner.data.sample import LeftOut, Sample, printable
from simpletuner.data.storage import Storage

REASONS_SHOWN = 8  # kinds of reasons in the message about a data set without samples


def notes_on(
    dataset: ClipDataset, listing: MediaListing, samples: Sequence[Sample], spare_frames: int, grid: Raster
) -> list[str]:
    """Sentences for the story before step 1.

    Args:
        dataset: The entry.
        listing: Its files.
        samples: What is trained of them.
        spare_frames: Frames after the last whole window of clips that are split.
        grid: The model family's raster.
    """
    notes = [_note_on_size(dataset, grid), _note_on_count(dataset, grid), *_notes_on_speed(samples)]
    notes += [_note_on_choice(listing), _note_on_windows(samples, spare_frames), *_notes_on_kinds(samples)]
    enlarged = [sample for sample in samples if not sample.part and _enlargement(sample) > 1.01]
    if enlarged:
        most = max(enlarged, key=_enlargement)
        by = _enlargement(most)
        scale = f"{by:.2g}×" if by < 10 else f"{by:.0f}×"
        told = counted(len(enlarged), "file is", "files are")
        notes.append(f"{told} enlarged, most of all {printable(most.path)} ({scale})")
    if listing.ignored:
        notes.append("ignored: " + ", ".join(f"{count} {kind}" for kind, count in sorted(listing.ignored.items())))
    return [note for note in notes if note]


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
    if dataset.video.num_frames is not None and not interval:
        return ""  # the configuration's own check has told it, with its place
    floored = interval * (wanted // interval) if interval else wanted
    used = frames_8k1(max(1, floored), grid.temporal)
    if used == wanted:
        return ""
    return f"{wanted} frames are trained as {used} (the model takes {grid.temporal}k+1)"


def _notes_on_speed(samples: Sequence[Sample]) -> list[str]:
    clips = [sample for sample in samples if sample.info.kind == "video" and not sample.part]
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


def _note_on_choice(listing: MediaListing) -> str:
    chosen = len(listing.files)
    return f"max_num_samples uses {chosen} of {listing.total} files, always the same" if chosen < listing.total else ""


def _note_on_windows(samples: Sequence[Sample], spare_frames: int) -> str:
    several = {sample.path for sample in samples if sample.part}
    if not several:
        return ""
    windows = sum(sample.path in several for sample in samples)
    rest = f"; {spare_frames} frames at their ends are too few for another" if spare_frames else ""
    return f"{len(several)} clip{'s are' if len(several) > 1 else ' is'} trained as {windows} windows" + rest


def _notes_on_kinds(samples: Sequence[Sample]) -> list[str]:
    """What is said of some files' pictures; each file counts once."""
    firsts = [sample for sample in samples if sample.part == 0 and sample.info.kind == "video"]
    kinds: tuple[tuple[Callable[[Sample], bool], str], ...] = (
        (
            lambda sample: sample.info.interlaced,
            "interlaced: moving edges have combs, which are trained too; deinterlace the files first",
        ),
        (lambda sample: bool(sample.info.transfer), "of high dynamic range: brought to standard range (BT.709)"),
        (lambda sample: sample.info.variable_rate, "of variable frame rate: resampled evenly by their time stamps"),
    )
    notes = []
    for belongs, words in kinds:
        found = [sample for sample in firsts if belongs(sample)]
        if found:
            shown = printable(found[0].path)
            notes.append(f"{len(found)} clip{'s are' if len(found) > 1 else ' is'} {words} (such as {shown})")
    return notes


def no_samples(dataset: ClipDataset, storage: Storage, listing: MediaListing, left_out: Sequence[LeftOut]) -> Problem:
    """The error about a data set of which nothing can be trained: what was found, and why it was left out."""
    total = len(listing.files) + len(listing.unnameable)
    if not total:
        wanted, kind = " ".join(endings_of(dataset)), " or ".join(dataset.kinds)
        passed_over = ", ".join(f"{count} {kind}" for kind, count in listing.ignored.items())
        return Problem(
            f"dataset '{dataset.id}': no samples detected in dataset. "
            f"The folder '{storage.place}' holds no {kind} files"
            + (f" ({passed_over} ignored)" if passed_over else ""),
            f"A data set of dataset_type '{dataset.dataset_type}' looks for {wanted}, sub-folders included",
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
