"""Where the files of a data set lie: one way to list them and to read their bytes, whatever the place.

A storage lists everything below its root and opens files for reading, from any position. It knows
nothing of clips. The local folder lives here; other places are files of `backends/`, found through
`config/catalogs/backends.py`. Some places bring a table of captions and sizes (`FactTable`).
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from simpletuner.config.catalogs.backends import BACKENDS, TABLES
from simpletuner.core.errors import UserError
from simpletuner.data.sample import Unfit, printable

if TYPE_CHECKING:
    from simpletuner.config.dataset import ClipDataset


@dataclass(frozen=True)
class StoredFile:
    """One file as its storage lists it.

    Attributes:
        path: Path below the root with forward slashes; unique within the storage.
        size_bytes: Size; -1 in a listing when the place does not tell it for all files at once, never from `stat`.
        version: Text that changes when the content does (time stamp in nanoseconds, entity tag, revision). Empty in
            a listing when only `stat` can tell it (the URLs of a list); never empty from `stat`.
    """

    path: str
    size_bytes: int
    version: str


@dataclass(frozen=True)
class Listing:
    """Everything below the root of a storage.

    Attributes:
        files: Files, sorted by path.
        unnameable: Files whose name is not UTF-8, with the bytes written out.
        passed_over: How many entries of each kind are not in `files` ("hidden files").
    """

    files: tuple[StoredFile, ...]
    unnameable: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)


class Storage(Protocol):
    """Byte access to one place. Methods may be called from several threads at once."""

    @property
    def place(self) -> str:
        """The place in words for messages: a folder or a URL, never with a secret in it."""

    def list_files(self) -> Listing:
        """List all files below the root.

        Raises:
            UserError: If the place is missing, unreachable or closed.
        """

    def stat(self, path: str) -> StoredFile:
        """Facts of one file as they are now.

        Raises:
            Unfit: If it is gone, unreachable, or not an ordinary file; the reason says which.
        """

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading; the result can seek, and reads only what is asked for.

        Raises:
            OSError: If it cannot be read.
        """

    def local_path(self, path: str) -> Path | None:
        """The file on this machine's disk, None if it lies elsewhere; decoders are faster on a path."""


@dataclass(frozen=True)
class TableRow:
    """What a table says of one file; what it does not say is absent.

    Attributes:
        captions: Captions in the order of their columns, trimmed, none of them empty.
        width: Width as shown, in pixels.
        height: Height as shown, in pixels.
        num_frames: Frames of the clip.
        fps: Frames per second.
    """

    captions: tuple[str, ...] = ()
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: float | None = None


class FactTable(Protocol):
    """Captions and sizes of many files, read once into memory."""

    @property
    def place(self) -> str:
        """The table in words for messages ("table 'clips.parquet'")."""

    def facts(self, path: str) -> TableRow | None:
        """What the table says of the file at `path` of the storage; None if it has no row for it."""


def open_facts(dataset: ClipDataset, storage: Storage) -> FactTable | None:
    """The table that comes with a data set: its `parquet` block, the list, or the columns of a Hub data set.

    Args:
        dataset: The entry.
        storage: What `open_storage` gave for it.
    Returns:
        None if the entry has no table.
    Raises:
        UserError: If the table cannot be read or lacks a column that the entry names.
    """
    named = "parquet" in (dataset.metadata_backend, dataset.caption_strategy) and dataset.parquet.path is not None
    kind = "parquet" if named else dataset.type
    if kind not in TABLES:
        return None
    table: FactTable | None = TABLES.load(kind)(dataset, storage)
    return table


def open_storage(dataset: ClipDataset) -> Storage:
    """The storage that the entry's `type` names; nothing is listed or read yet.

    Raises:
        UserError: If a package it needs is not installed, or the entry lacks what the place needs.
    """
    build = BACKENDS.load(dataset.type)
    storage: Storage = build(dataset)
    return storage


class LocalStorage:
    """A folder; fulfils `Storage`."""

    def __init__(self, root: Path, owner: str = "") -> None:
        """
        Args:
            root: The folder.
            owner: Id of the data set, for messages.
        """
        self._root = root
        self._owner = owner

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    @property
    def place(self) -> str:
        return str(self._root)

    def list_files(self) -> Listing:
        """Links are followed once; hidden files are passed over."""
        if not self._root.is_dir():
            raise UserError(
                f"data set '{self._owner}': the folder '{self._root}' does not exist",
                "instance_data_dir must be a folder of clips",
                f"Create it, or correct instance_data_dir (looked up from '{Path.cwd()}')",
            )
        files: list[StoredFile] = []
        unnameable: list[str] = []
        passed_over: Counter[str] = Counter()
        visited: set[tuple[int, int]] = set()
        folders = [""]
        while folders:
            folder = folders.pop()
            if self._was_visited(folder, visited):  # a link that leads back up, or a second way to one folder
                passed_over["linked folders already listed"] += 1
                continue
            for entry in self._entries(folder):
                path = f"{folder}{entry.name}"
                if entry.name.startswith("."):
                    passed_over.update(["hidden files"] if not _is_folder(entry) else [])
                elif _is_folder(entry):
                    folders.append(f"{path}/")
                elif _is_utf8(path):
                    files.append(_stored(path, entry))
                else:
                    unnameable.append(os.fsencode(path).decode("utf-8", "backslashreplace"))
        return Listing(tuple(sorted(files, key=lambda file: file.path)), tuple(sorted(unnameable)), dict(passed_over))

    def stat(self, path: str) -> StoredFile:
        full = self._root / path
        try:
            status = full.stat()
        except OSError as error:
            if full.is_symlink():
                raise Unfit("the link points to nothing") from error
            raise Unfit(f"cannot be reached ({error.strerror or error})") from error
        if not stat.S_ISREG(status.st_mode):
            raise Unfit("not an ordinary file (a pipe, socket, device or folder)")
        return StoredFile(path, status.st_size, str(status.st_mtime_ns))

    def open(self, path: str) -> BinaryIO:
        return (self._root / path).open("rb")

    def local_path(self, path: str) -> Path | None:
        return self._root / path

    def _was_visited(self, folder: str, visited: set[tuple[int, int]]) -> bool:
        status = (self._root / folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in visited:
            return True
        visited.add(identity)
        return False

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self._root / folder) as entries:
                yield from sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            shown = printable(str(self._root / folder))
            raise UserError(
                f"data set '{self._owner}': the folder '{shown}' cannot be listed ({error.strerror})",
                "All sub-folders of a data set must be readable, or clips would be missing without a word",
                "Correct its permissions, or move it out of the data set",
            ) from error


def open_local(dataset: ClipDataset) -> Storage:
    """The storage of an entry of type `local`."""
    return LocalStorage(Path(dataset.instance_data_dir), dataset.id)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _stored(path: str, entry: os.DirEntry[str]) -> StoredFile:
    try:
        status = entry.stat()
    except OSError:  # a link to nothing; opening it tells the reason
        return StoredFile(path, -1, "")
    return StoredFile(path, status.st_size, str(status.st_mtime_ns))


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
