"""What every listed file holds: from the index, a table, or its own header, read by several threads.

Only what is new is opened, and PyAV, Pillow and numpy are imported only then, so that a data set
seen before is planned in seconds. Findings are written down in batches while the scan goes on: a
killed scan is continued. Which of the files are trained is decided in `find.py`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import Problem, UserError
from simpletuner.data.header_processes import LocalHeader, NoProcessesError, read_in_processes
from simpletuner.data.headers import Media, content_hash, read_header
from simpletuner.data.index import FileIndex, open_index
from simpletuner.data.listing import MediaListing, has_ending
from simpletuner.data.sample import MediaInfo, Unfit
from simpletuner.data.storage import FactTable, LocalStorage, Storage, StoredFile, open_facts
from simpletuner.events.types import Event, StageAdvanced, StageFinished, StageStarted

SAVED_AT_ONCE = 4096  # findings per transaction, each of which waits for the disk
SAVED_AFTER_SECONDS = 2.0
PROBE_EVENTS = 200  # at most so many progress events per stage
# FFmpeg's opening of a file holds the interpreter's lock: more threads on local files only wait for each other
# (1: 0.64 ms a file, 2: 0.70, 8: 0.97 on two cores). Files elsewhere wait for the network and want all workers.
LOCAL_READERS = 2
# Processes do not wait for each other, but each takes a third of a second to start.
TRIED_SECONDS = 0.5
WORTH_PROCESSES_SECONDS = 2.0
QUEUED_PER_WORKER = 4

Cuts = tuple[float, ...]
Job = TypeVar("Job")
Result = TypeVar("Result")
Emit = Callable[[Event], None]


@dataclass
class Shelf:
    """One data set while it is scanned.

    Attributes:
        dataset: The entry.
        storage: Where its files lie.
        listing: Files that the entry asks for.
        table: Table of captions and sizes that comes with it.
        index: What is known from earlier scans.
        files: Listed files by path, with size and version filled in.
        media: Path -> facts or verdict; complete after `scan`.
        cuts: Path -> moments, in seconds, at which a new scene begins; clips of data sets split at scenes only.
    """

    dataset: ClipDataset
    storage: Storage
    listing: MediaListing
    table: FactTable | None
    index: FileIndex
    files: dict[str, StoredFile] = field(default_factory=dict)
    media: dict[str, Media] = field(default_factory=dict)
    cuts: dict[str, Cuts] = field(default_factory=dict)
    _unsaved: list[tuple[StoredFile, Media, str]] = field(default_factory=list)
    _saved_at: float = field(default_factory=time.monotonic)

    def take(self, file: StoredFile, media: Media, content: str) -> None:
        """Note a finding, and write down what has gathered now and then."""
        self.media[file.path] = media
        self._unsaved.append((_as_read(file, media), media, content))
        if len(self._unsaved) >= SAVED_AT_ONCE or time.monotonic() - self._saved_at > SAVED_AFTER_SECONDS:
            self.save()

    def save(self) -> None:
        """Write down all findings."""
        unsaved, self._unsaved = self._unsaved, []
        self.index.save_media(unsaved)
        self._saved_at = time.monotonic()


def open_shelves(
    datasets: Sequence[ClipDataset],
    storages: Mapping[str, Storage],
    listings: Mapping[str, MediaListing],
    opened: ExitStack,
) -> list[Shelf]:
    """One shelf per data set; their indexes are closed with `opened`.

    Raises:
        UserError: If a data set's table cannot be read.
    """
    shelves: list[Shelf] = []
    problems: list[Problem] = []
    for dataset in datasets:
        storage = storages[dataset.id]
        try:
            table = open_facts(dataset, storage)
        except UserError as error:
            problems += error.problems
        else:
            shelves.append(Shelf(dataset, storage, listings[dataset.id], table, open_index(dataset)))
    if problems:
        raise UserError.of(problems)
    for shelf in shelves:
        opened.enter_context(shelf.index)
    return shelves


def scan(shelves: Sequence[Shelf], *, workers: int, emit: Emit) -> None:
    """Fill `media` (and `cuts`) of all `shelves`.

    Args:
        shelves: Data sets, see `open_shelves`.
        workers: Threads that read files.
        emit: Receives the progress events of the stages "probe" and "scenes".
    Raises:
        UserError: If a package that is asked for is not installed.
    """
    for shelf in shelves:
        _identify(shelf, workers)
        _take_from_table(shelf)
        _take_from_index(shelf, workers)
    _probe_new(shelves, workers, emit)
    for shelf in shelves:
        if shelf.dataset.video.split_at_scenes and "video" in shelf.dataset.kinds:
            _find_scenes(shelf, workers, emit)
        shelf.index.forget_missing({file.path for file in shelf.listing.everything.files})


# What is known already --------------------------------------------------------------------------


def _identify(shelf: Shelf, workers: int) -> None:
    """Ask for size and version of files whose listing does not tell them."""
    unclear = [file for file in shelf.listing.files if file.size_bytes < 0 or not file.version]
    shelf.files = {file.path: file for file in shelf.listing.files}
    for file, answer in in_threads(lambda file: _stat(shelf.storage, file), unclear, workers):
        if isinstance(answer, Unfit):
            shelf.media[file.path] = answer
        else:
            shelf.files[file.path] = answer


def _stat(storage: Storage, file: StoredFile) -> StoredFile | Unfit:
    try:
        return storage.stat(file.path)
    except Unfit as unfit:
        return unfit


def _take_from_table(shelf: Shelf) -> None:
    """Facts of a table, where the entry asks for them and the row is complete; decoding verifies them."""
    if shelf.table is None or shelf.dataset.metadata_backend == "discovery":
        return
    for file in shelf.files.values():
        info = _media_of_row(shelf, file)
        if info is not None and file.path not in shelf.media:
            shelf.media[file.path] = info


def _media_of_row(shelf: Shelf, file: StoredFile) -> MediaInfo | None:
    row = shelf.table.facts(file.path) if shelf.table else None
    if row is None or not row.width or not row.height:
        return None
    if _is_picture(shelf.dataset, file):
        return MediaInfo("image", row.width, row.height, 0.0, 1, 0.0, 0, 1.0, "", file.size_bytes, file.version)
    if not row.num_frames or not row.fps:
        return None
    seconds = row.num_frames / row.fps
    return MediaInfo(
        "video", row.width, row.height, row.fps, row.num_frames, seconds, 0, 1.0, "", file.size_bytes, file.version
    )


def _is_picture(dataset: ClipDataset, file: StoredFile) -> bool:
    return dataset.kinds == ("image",) or ("image" in dataset.kinds and has_ending(file.path, "image"))


def _take_from_index(shelf: Shelf, workers: int) -> None:
    shelf.media = shelf.index.find_media(shelf.files) | shelf.media
    # A copied folder has new time stamps; where the content is the same, only these are noted.
    unknown = [file for path, file in shelf.files.items() if path not in shelf.media]
    contents = shelf.index.find_contents(file.path for file in unknown)
    likely = [file for file in unknown if contents.get(file.path, (-1, ""))[0] == file.size_bytes]
    hashed = in_threads(lambda file: content_hash(shelf.storage, file), likely, workers)
    same = {file.path: file for file, content in hashed if content == contents[file.path][1]}
    shelf.index.renew_media(same.values())
    shelf.media |= shelf.index.find_media(same) if same else {}


# What is new ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unread:
    """A file to be opened, once for all data sets that list it."""

    storage: Storage
    file: StoredFile
    owners: tuple[Shelf, ...]


def _probe_new(shelves: Sequence[Shelf], workers: int, emit: Emit) -> None:
    unread = _share(shelves)
    total = sum(len(shelf.files) for shelf in shelves)
    known = total - sum(len(item.owners) for item in unread)
    progress = _Progress("probe", "Reading headers", total, known, emit)
    try:
        for item, (media, content) in _read_headers(unread, workers):
            for shelf in item.owners:
                shelf.take(item.file, media, content)
            progress.advance(len(item.owners))
    finally:
        for shelf in shelves:
            shelf.save()
    unusable = sum(isinstance(media, Unfit) for shelf in shelves for media in shelf.media.values())
    parts = [f"{known} remembered"] * bool(known) + [f"{unusable} unusable"] * bool(unusable)
    progress.finish(", ".join(parts))


def _share(shelves: Sequence[Shelf]) -> list[_Unread]:
    """Files not yet known, each once; what one data set knows of a folder is told to the others."""
    known: dict[tuple[str, StoredFile], Media] = {}
    owners: dict[tuple[str, StoredFile], list[Shelf]] = {}
    several = len(shelves) > 1
    for shelf in shelves:
        for path, file in shelf.files.items():
            if path not in shelf.media:
                owners.setdefault((shelf.storage.place, file), []).append(shelf)
            elif several and not shelf.table:
                known[shelf.storage.place, file] = shelf.media[path]
    for key in [key for key in owners if key in known]:
        for shelf in owners.pop(key):
            shelf.take(key[1], known[key], "")
    return [_Unread(found[0].storage, file, tuple(found)) for (_, file), found in owners.items()]


def _read_headers(unread: Sequence[_Unread], workers: int) -> Iterator[tuple[_Unread, tuple[Media, str]]]:
    """(file, what it holds and the hash of its content) as they become ready."""
    elsewhere = [item for item in unread if not isinstance(item.storage, LocalStorage)]
    yield from in_threads(_read, elsewhere, workers)
    local = deque(item for item in unread if isinstance(item.storage, LocalStorage))
    processes = min(workers, os.cpu_count() or 1)
    begun, total = time.monotonic(), len(local)

    def few() -> Iterator[_Unread]:
        """The files, until it is clear that several processes would be done sooner."""
        while local:
            spent = time.monotonic() - begun
            rest = spent * len(local) / max(1, total - len(local))
            if processes > 1 and spent > TRIED_SECONDS and rest > WORTH_PROCESSES_SECONDS:
                return
            yield local.popleft()

    yield from in_threads(_read, few(), min(workers, LOCAL_READERS))
    if local:
        yield from _read_many(local, processes, workers)


def _read_many(local: Iterable[_Unread], processes: int, workers: int) -> Iterator[tuple[_Unread, tuple[Media, str]]]:
    waiting = {_header_of(item): item for item in local}
    try:
        for header, answer in read_in_processes(list(waiting), processes):
            yield waiting.pop(header), answer
    except NoProcessesError as error:
        yield from in_threads(_read, [waiting[header] for header in error.unread], min(workers, LOCAL_READERS))


def _header_of(item: _Unread) -> LocalHeader:
    assert isinstance(item.storage, LocalStorage)
    return LocalHeader(item.storage.root, item.file)


def _read(item: _Unread) -> tuple[Media, str]:
    return read_header(item.storage, item.file)


def _as_read(file: StoredFile, media: Media) -> StoredFile:
    """The file as it was when it was read, which may be later than its listing."""
    return StoredFile(file.path, media.size_bytes, media.version) if isinstance(media, MediaInfo) else file


def _find_scenes(shelf: Shelf, workers: int, emit: Emit) -> None:
    from simpletuner.data.scenes import DETECTOR, find_cuts, require_detector

    clips = {
        path: _as_read(shelf.files[path], media)
        for path, media in shelf.media.items()
        if isinstance(media, MediaInfo) and media.kind == "video"
    }
    shelf.cuts = {path: tuple(cuts) for path, cuts in shelf.index.read_facts(DETECTOR, clips).items()}
    unseen = [file for path, file in clips.items() if path not in shelf.cuts]
    if unseen:
        require_detector(shelf.dataset.id)
    progress = _Progress("scenes", "Looking for scene changes", len(clips), len(shelf.cuts), emit)

    def look(file: StoredFile) -> Cuts | Unfit:
        info = shelf.media[file.path]
        assert isinstance(info, MediaInfo)
        try:
            return find_cuts(shelf.storage, file.path, info)
        except Unfit as unfit:
            return unfit

    unsaved: list[tuple[StoredFile, Cuts]] = []
    for file, cuts in in_threads(look, unseen, workers):
        if isinstance(cuts, Unfit):
            shelf.media[file.path] = cuts
        else:
            shelf.cuts[file.path] = cuts
            unsaved.append((file, cuts))
        if len(unsaved) >= max(1, workers):  # each took a whole clip to decode
            shelf.index.write_facts(DETECTOR, unsaved)
            unsaved = []
        progress.advance(1)
    shelf.index.write_facts(DETECTOR, unsaved)
    progress.finish(f"{sum(map(len, shelf.cuts.values()))} in {len(shelf.cuts)} clips")


class _Progress:
    """Events of one stage, few however many files there are."""

    def __init__(self, stage: str, label: str, total: int, known: int, emit: Emit) -> None:
        self._stage, self._total, self._done, self._emit = stage, total, known, emit
        self._stride = max(1, (total - known) // PROBE_EVENTS)
        self._told, self._begun = known, time.monotonic()
        emit(StageStarted(stage, label, total, "files", known))

    def advance(self, count: int) -> None:
        self._done += count
        if self._done - self._told >= self._stride or self._done == self._total:
            self._told = self._done
            self._emit(StageAdvanced(self._stage, self._done))

    def finish(self, summary: str) -> None:
        self._emit(StageFinished(self._stage, self._done, time.monotonic() - self._begun, summary))


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Result]]:
    """(job, result) as they become ready; only a few jobs wait at a time, however many there are."""
    waiting: dict[Future[Result], Job] = {}
    upcoming = iter(jobs)
    first = next(upcoming, None)
    if first is None:
        return
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="scan")
    try:
        waiting[pool.submit(work, first)] = first
        while True:
            while len(waiting) < QUEUED_PER_WORKER * max(1, workers):
                job = next(upcoming, None)
                if job is None:
                    break
                waiting[pool.submit(work, job)] = job
            if not waiting:  # only now: all that waited may have been ready at once, with more jobs to come
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C must not wait for files nobody asks for
