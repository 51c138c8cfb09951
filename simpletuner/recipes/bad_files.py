"""What becomes of damaged files: left out at once when known, put on the quarantine list, moved away only on request.

Torch-free up to the second look at a file, so that planning stays quick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from simpletuner.config.dataset import ClipDataset
from simpletuner.config.run_config import RunConfig
from simpletuner.core.counting import counted
from simpletuner.data.find import FoundSamples
from simpletuner.data.index import open_index
from simpletuner.data.quarantine import Stage, open_quarantines, remember_damaged, stored_file, without_quarantined
from simpletuner.data.sample import LeftOut, Sample, ShortMedia, Unfit, printable
from simpletuner.data.storage import Storage, StoredFile
from simpletuner.data.trash import TRASH_FOLDER, UNDO_NAME, Spared, confirm_damage, move_to_trash
from simpletuner.events.types import Event, Noticed

COMMAND_LINE = "command line"


def leave_out_known(found: FoundSamples, datasets: Sequence[ClipDataset]) -> FoundSamples:
    """`found` without the files that are on a quarantine list, which are reported as left out."""
    kept, known = without_quarantined(found.samples, open_quarantines(datasets))
    return replace(found, samples=kept, left_out=(*found.left_out, *known)) if known else found


def forget_known(datasets: Sequence[ClipDataset]) -> int:
    """Clear the quarantine lists and the verdicts in the indexes, so that all is tried again; gives how many files."""
    count = sum(quarantine.forget() for quarantine in open_quarantines(datasets).values())
    for dataset in datasets:
        with open_index(dataset) as index:
            index.forget_verdicts()
    return count


def keep_damaged(
    config: RunConfig,
    storages: Mapping[str, Storage],
    samples: Iterable[Sample],
    left_out: Iterable[LeftOut],
    stage: Stage,
    emit: Callable[[Event], None],
    *,
    moves: bool = True,
) -> frozenset[tuple[str, str]]:
    """Put files that failed by their own fault on the quarantine lists; move them to the trash where that is asked for.

    Args:
        config: The run.
        storages: Where the files of each data set lie.
        samples: What was planned; tells which state of a file failed.
        left_out: What failed; only items that are `damaged` matter.
        stage: What failed.
        emit: Receives a notice per file that is moved, or that should have been and is not.
        moves: Whether files may be moved at all.

    Returns:
        The files (data set, path) that are on a list now, so that the next start leaves them out.

    Raises:
        UserError: If the disk is full, or a folder cannot be written.
    """
    damaged = [item for item in left_out if item.damaged]
    if not damaged:
        return frozenset()
    planned = {(sample.dataset, sample.path): sample for sample in samples}

    def find_file(item: LeftOut) -> StoredFile | None:
        sample = planned.get((item.dataset, item.path))
        return stored_file(sample) if sample else _stat(storages[item.dataset], item.path)

    if stage == "decode":
        damaged = [item for item in damaged if not _is_only_short(item, config.all_datasets, storages, planned, emit)]
    remember_damaged(damaged, open_quarantines(config.all_datasets), find_file, stage)
    for dataset in config.all_datasets if moves else ():
        if not asks_for_moves(config, dataset):
            continue
        for item in damaged:
            file = find_file(item) if item.dataset == dataset.id else None
            if file is not None:
                sample = planned.get((item.dataset, item.path))
                told = _move(storages[dataset.id], file, Path(str(dataset.cache_dir_vae)), sample)
                emit(Noticed("warning", f"{dataset.id}/{printable(item.path)}: {told}"))
    return frozenset((item.dataset, item.path) for item in damaged)


def without_damaged(
    samples: Iterable[Sample], files: frozenset[tuple[str, str]], emit: Callable[[Event], None]
) -> tuple[Sample, ...]:
    """The samples that are not of these files.

    Windows of a damaged file that could be decoded go too: the next start does not see the file, and a checkpoint of a
    run that trained them could not be continued.
    """
    kept, lost = [], Counter[str]()
    for sample in samples:
        if (sample.dataset, sample.path) in files:
            lost[f"{sample.dataset}/{printable(sample.path)}"] += 1
        else:
            kept.append(sample)
    for name, count in lost.items():
        windows = counted(count, "window that is", "windows that are")
        emit(Noticed("warning", f"{name} is damaged: its {windows} whole are left out too, as at every later start"))
    return tuple(kept)


def asks_for_moves(config: RunConfig, dataset: ClipDataset) -> bool:
    """Whether the entry or the command line, not just a configuration file, asks to move damaged files away."""
    wanted_here = config.origins.get("delete_problematic_images") == COMMAND_LINE
    asked = dataset.delete_problematic_images or (wanted_here and config.data.delete_problematic_images)
    return asked and dataset.type == "local"


def _is_only_short(
    item: LeftOut,
    datasets: Sequence[ClipDataset],
    storages: Mapping[str, Storage],
    planned: Mapping[tuple[str, str], Sample],
    emit: Callable[[Event], None],
) -> bool:
    """Whether the file's pictures just end before its header says; then its true length is noted for the next start."""
    from simpletuner.data.decode import decode_sample

    sample = planned.get((item.dataset, item.path))
    dataset = next((entry for entry in datasets if entry.id == item.dataset), None)
    if sample is None or dataset is None:
        return False
    try:
        decode_sample(storages[item.dataset], sample)
    except ShortMedia as short:
        with open_index(dataset) as index:
            index.note_true_length(stored_file(sample), short.num_frames, short.duration_seconds)
        length = f"{short.num_frames} frames, {short.duration_seconds:.2f} s"
        emit(Noticed("note", f"{sample.name}: its true length ({length}) is known from the next start on"))
        return True
    except (Unfit, OSError):
        return False
    return False


def _move(storage: Storage, file: StoredFile, cache_folder: Path, sample: Sample | None) -> str:
    """Move one file after a second look; gives what to tell."""
    from simpletuner.data.decode import decode_sample
    from simpletuner.data.probe import probe

    again = partial(decode_sample, storage, sample) if sample else partial(probe, storage, file.path)
    verdict = confirm_damage(storage, file, again)
    if isinstance(verdict, Spared):
        return f"damaged, but stays where it is: {verdict.reason}"
    moved = move_to_trash(storage, file.path, cache_folder, verdict)
    if isinstance(moved, Spared):
        return f"damaged, but stays where it is: {moved.reason}"
    caption = " with its caption" if len(moved) > 1 else ""
    undo = cache_folder / TRASH_FOLDER / UNDO_NAME
    return f"moved{caption} to '{moved[0]}' ({verdict}); '{undo}' tells how to bring it back"


def _stat(storage: Storage, path: str) -> StoredFile | None:
    try:
        return storage.stat(path)
    except Unfit:
        return None
