"""Files that proved unusable, remembered with their reason so that no start fails on them again.

The list `quarantine.jsonl` lies in each data set's `cache_dir_vae`. A record holds as long as the file and the decoder
are the ones it was written about. Only faults of the bytes themselves come here, never those of a disk, a network or
a setting. `trash.py` moves such files away for those who ask for it; nothing here touches a clip.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Literal

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.files import write_atomic
from simpletuner.data.sample import LeftOut, Sample
from simpletuner.data.storage import StoredFile
from simpletuner.events.lines import encode_line, read_lines

logger = logging.getLogger(__name__)

Stage = Literal["probe", "decode", "encode"]

LIST_NAME = "quarantine.jsonl"
DECODER = "av"  # a newer one may read what this one refuses


@dataclass(frozen=True)
class Quarantined:
    """One file on the list.

    Attributes:
        dataset: Id of its data set.
        path: Path below the data set's place.
        size_bytes, version: The file as it was, see `storage.StoredFile`.
        reason: What is wrong with it.
        stage: What failed: reading the header, decoding the trained frames, or encoding them.
        when: Moment of the record, UTC, ISO 8601.
        decoder: Version of the decoder that failed.
    """

    dataset: str
    path: str
    size_bytes: int
    version: str
    reason: str
    stage: Stage
    when: str
    decoder: str


class Quarantine:
    """The list of one data set; several processes may add to one list."""

    def __init__(self, folder: Path | None, dataset: str) -> None:
        """
        Args:
            folder: The data set's `cache_dir_vae`; None keeps the list in memory only.
            dataset: Id of the data set; sets that share a folder share the file, not the records.
        """
        self._path = folder / LIST_NAME if folder else None
        self._dataset = dataset
        self._decoder = installed_version(DECODER)
        self._records = {item.path: item for item in self._read() if item.dataset == dataset}

    @property
    def place(self) -> str:
        """Where the list lies, for messages; empty if it is in memory only."""
        return str(self._path or "")

    @property
    def records(self) -> tuple[Quarantined, ...]:
        """What is on the list, by path; records of another decoder or of files changed since included."""
        return tuple(self._records[path] for path in sorted(self._records))

    def reason_for(self, file: StoredFile) -> str | None:
        """Why `file` is on the list; None if it is not, if it has changed since, or if the decoder has."""
        item = self._records.get(file.path)
        if item is None or item.decoder != self._decoder:
            return None
        return item.reason if (item.size_bytes, item.version) == (file.size_bytes, file.version) else None

    def add(self, file: StoredFile, reason: str, stage: Stage) -> None:
        """Put one file on the list; see `add_all`."""
        self.add_all([(file, reason)], stage)

    def add_all(self, files: Iterable[tuple[StoredFile, str]], stage: Stage) -> None:
        """Put (file, reason) pairs on the list and save it; what already is there keeps its date.

        Raises:
            UserError: If the disk is full or closed to writing.
        """
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        new = {
            file.path: Quarantined(
                self._dataset, file.path, file.size_bytes, file.version, reason, stage, when, self._decoder
            )
            for file, reason in files
            if self.reason_for(file) != reason
        }
        if new:
            self._records |= new
            self._save(new, ())

    def forget(self, paths: Iterable[str] | None = None) -> int:
        """Take these files, or all of the data set, off the list; gives how many were on it."""
        known = set(self._records)
        gone = known if paths is None else known.intersection(paths)
        for path in gone:
            del self._records[path]
        if gone:
            self._save({}, gone)
        return len(gone)

    def _read(self) -> list[Quarantined]:
        if self._path is None:
            return []
        found = []
        for line in read_lines(self._path):
            try:
                found.append(Quarantined(**line))
            except TypeError:  # a line of a newer program, or by hand
                logger.warning("%s: passed over a line that is no record: %s", self._path, json.dumps(line)[:200])
        return found

    def _save(self, new: Mapping[str, Quarantined], gone: Iterable[str]) -> None:
        """Read the file again before it is replaced: another process may have added to it."""
        if self._path is None:
            return
        left = set(gone)
        merged = {(item.dataset, item.path): item for item in self._read()}
        for path in left:
            merged.pop((self._dataset, path), None)
        merged |= {(self._dataset, path): item for path, item in new.items()}
        lines = [encode_line(asdict(merged[key])) for key in sorted(merged)]
        write_atomic(self._path, b"".join(lines))


def open_quarantine(dataset: ClipDataset) -> Quarantine:
    """The list of a data set, read at once."""
    return Quarantine(Path(dataset.cache_dir_vae) if dataset.cache_dir_vae else None, dataset.id)


def open_quarantines(datasets: Sequence[ClipDataset]) -> dict[str, Quarantine]:
    """The lists of all data sets, by id."""
    return {dataset.id: open_quarantine(dataset) for dataset in datasets}


def without_quarantined(
    samples: Sequence[Sample], quarantines: Mapping[str, Quarantine]
) -> tuple[tuple[Sample, ...], tuple[LeftOut, ...]]:
    """The samples whose files are not on the lists, and one record per file that is."""
    kept: list[Sample] = []
    left_out: dict[tuple[str, str], LeftOut] = {}
    for sample in samples:
        reason = quarantines[sample.dataset].reason_for(stored_file(sample))
        if reason is None:
            kept.append(sample)
        else:
            left_out[sample.dataset, sample.path] = LeftOut(sample.dataset, sample.path, reason, damaged=True)
    return tuple(kept), tuple(left_out.values())


def stored_file(sample: Sample) -> StoredFile:
    """The file of a sample as it was scanned."""
    return StoredFile(sample.path, sample.info.size_bytes, sample.info.version)


def remember_damaged(
    left_out: Iterable[LeftOut],
    quarantines: Mapping[str, Quarantine],
    find_file: Callable[[LeftOut], StoredFile | None],
    stage: Stage,
) -> int:
    """Put what was left out because of its own bytes on the lists; gives how many files.

    Args:
        left_out: What a stage could not use; items that are not `damaged` are passed over.
        quarantines: The lists by data set, see `open_quarantines`.
        find_file: The file of an item as it was when it failed; None if that is not known.
        stage: What failed.
    """
    found: dict[str, list[tuple[StoredFile, str]]] = {}
    for item in left_out:
        file = find_file(item) if item.damaged else None
        if file is not None and item.dataset in quarantines:
            found.setdefault(item.dataset, []).append((file, item.reason))
    for dataset, files in found.items():
        quarantines[dataset].add_all(files, stage)
    return sum(map(len, found.values()))
