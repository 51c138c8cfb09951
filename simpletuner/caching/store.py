"""Where cache entries lie on the disk: one file each, or records of shards, compressed or not, all read side by side.

`EntryReader` finds and verifies, `EntryWriter` adds, `check_entries` compares what is there with what is wanted. The
bytes of an entry are the business of `entry.py`, shards that of `shards.py`; this module knows nothing of clips,
captions or models.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from torch import Tensor

from simpletuner.caching.entry import (
    Blob,
    DamagedEntryError,
    compress,
    expand,
    expanded_size,
    expanding,
    kind_of,
    pack_entry,
    peek_entry,
    unpack_entry,
)
from simpletuner.caching.fingerprint import fingerprint
from simpletuner.caching.shards import Record, ShardReader, ShardWriter
from simpletuner.core.counting import counted
from simpletuner.core.errors import UserError
from simpletuner.core.files import retire, sweep, write_atomic
from simpletuner.events.wording import told_size

SUFFIX = ".safetensors"
PACKED_SUFFIX = ".safetensors.zst"
_MAX_STEM_BYTES = 180  # file systems allow 255 bytes per name; the fingerprint and suffix need 33
_PIECE = 64  # entries that a thread looks at before it asks for more
# Younger staging files may belong to another process at work: a builder, or one that keeps its own files here.
_LITTER_AGE_SECONDS, _LITTER_AGE_ALONE_SECONDS = 3600.0, 10.0


@dataclass(frozen=True)
class Storing:
    """How new entries are kept; entries of every kind are read, whatever is chosen here.

    Attributes:
        form: One file per entry, or records of shards.
        compress: Whether zstd packs them.
    """

    form: Literal["files", "shards"] = "files"
    compress: bool = False


@dataclass(frozen=True)
class Key:
    """Where an entry belongs and what it must be.

    Attributes:
        folder: Cache folder.
        name: Its file below the folder, without suffix, if it is kept as a file.
        digest: Fingerprint of everything that shapes its tensors, 64 hexadecimal digits; see `fingerprint.py`.
    """

    folder: Path
    name: str
    digest: str

    @classmethod
    def of(cls, folder: Path, name: str, facts: Mapping[str, Any]) -> Key:
        """Key of the entry for the source `name` (a path with forward slashes) below `folder`.

        A file is called `<folder>/<sub-folders of name>/<stem>-<16 digits of the fingerprint>.safetensors`, so
        `clip.mp4` and `clip.mov` never share one.

        Raises:
            ValueError: If `name` leaves the folder.
        """
        source = PurePosixPath(name)
        if source.is_absolute() or ".." in source.parts:
            raise ValueError(f"cache entry name {name!r} leaves the cache folder")
        whole = fingerprint(facts)
        # Bytes that are not UTF-8 (which safetensors refuses in paths) become "?"; the fingerprint
        # still tells such names apart.
        folders = [part.encode("utf-8", "replace").decode("utf-8") for part in source.parts[:-1]]
        stem = source.stem.encode("utf-8", "replace")[:_MAX_STEM_BYTES].decode("utf-8", "ignore")
        return cls(folder, "/".join([*folders, f"{stem}-{whole[:16]}"]), whole)

    @property
    def path(self) -> Path:
        """Its file when it is kept as one, not compressed."""
        return self.folder / f"{self.name}{SUFFIX}"

    @property
    def packed_path(self) -> Path:
        """Its file when it is kept as one, compressed."""
        return self.folder / f"{self.name}{PACKED_SUFFIX}"


class EntryReader:
    """Reads entries of some cache folders, in whatever form they are kept; may be used by several threads."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._shards = {folder: ShardReader(folder) for folder in folders}

    def refresh(self, folder: Path) -> None:
        """Notice what other processes have added to shards since."""
        self._shards[folder].refresh()

    def peek(self, key: Key) -> dict[str, Any]:
        """Notes of the entry; only its header is read.

        Raises:
            FileNotFoundError: If there is none.
            DamagedEntryError: If what is there is not what `key` asks for.
        """
        if record := self._record(key):
            shards = self._shards[key.folder]
            if not record.plain_bytes:
                return peek_entry(shards.open(record), record.stored_bytes, key.digest)
            return peek_entry(expanding(shards.open(record)), record.plain_bytes, key.digest)
        with _opened(key) as (handle, packed):
            return _peek(handle, os.fstat(handle.fileno()).st_size, key, packed=packed)

    def read(self, key: Key, *, verify: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and notes of the entry; of a file that is not compressed they are views of its memory map.

        Args:
            key: Where and what.
            verify: Whether to compute the checksum too; without it only the key and the shapes are compared.

        Raises:
            FileNotFoundError: If there is none.
            DamagedEntryError: If what is there is not what `key` asks for.
        """
        if record := self._record(key):
            payload = self._shards[key.folder].read(record)
            blob: Blob = expand(payload) if record.plain_bytes else payload
        else:
            with _opened(key) as (handle, packed):
                if packed:
                    # The header is looked at first, so that a huge foreign file is refused before memory is taken.
                    _peek(handle, os.fstat(handle.fileno()).st_size, key, packed=True)
                    handle.seek(0)
                    blob = expand(handle.read())
                else:
                    blob = _mapped(handle)
        return unpack_entry(blob, key.digest, verify=verify)

    def discard(self, key: Key) -> None:
        """Take a damaged entry out of the way, so that it is made again and never found again."""
        if record := self._record(key):
            self._shards[key.folder].give_up(record)
        for path in (key.path, key.packed_path):
            with contextlib.suppress(FileNotFoundError):
                retire(path)

    def stored_bytes(self, key: Key) -> int:
        """Bytes that the entry takes on the disk; 0 if there is none."""
        if record := self._record(key):
            return record.end - record.offset
        return sum(path.stat().st_size for path in (key.path, key.packed_path) if path.is_file())

    def unwanted(self, keys: Collection[Key], kind: str) -> Iterator[tuple[Path | Record, int]]:
        """(place, bytes) of every entry of `kind` in the folders that is none of `keys`, second copies included."""
        paths = {path for key in keys for path in (key.path, key.packed_path)}
        digests = {(key.folder, key.digest) for key in keys}
        for folder, shards in self._shards.items():
            for record in shards.all_records():
                wanted = (folder, record.digest) in digests and shards.find(record.digest) == record
                if record.kind == kind and not wanted:
                    yield record, record.end - record.offset
            for path in entry_files(folder):
                if path not in paths and kind_of(path) == kind:
                    paths.add(path)  # folders may lie within each other
                    yield path, path.stat().st_size

    def _record(self, key: Key) -> Record | None:
        return self._shards[key.folder].find(key.digest)


class EntryWriter:
    """Adds entries in the chosen form; may be used by several threads. Close it, so that shards are made final."""

    def __init__(self, builder: str, storing: Storing) -> None:
        """
        Args:
            builder: Id of this process, see `claims.py`.
            storing: How entries are kept.
        """
        self._builder = builder
        self._storing = storing
        self._shards: dict[Path, ShardWriter] = {}

    def write(
        self, key: Key, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None
    ) -> None:
        """Keep an entry, complete or not at all.

        Args:
            key: Where and what; made of `facts`.
            facts: Everything that shapes the tensors; `kind` among them.
            tensors: By name, in the number format in which they are kept.
            notes: JSON facts kept beside the tensors that do not shape them, such as words cut off.

        Raises:
            UserError: If the disk is full or the folder cannot be written (exit code 6).
        """
        blob = pack_entry(facts, tensors, notes)
        packed = compress(blob) if self._storing.compress else blob
        if self._storing.form == "files":
            write_atomic(key.packed_path if self._storing.compress else key.path, packed)
            return
        plain_bytes = len(blob) if self._storing.compress else 0
        self._shards_of(key.folder).append(str(facts["kind"]), key.digest, packed, plain_bytes)

    def close(self) -> None:
        """Make open shards final."""
        for writer in self._shards.values():
            writer.close()

    def _shards_of(self, folder: Path) -> ShardWriter:
        # One dict operation, so that two threads never get different writers.
        return self._shards.setdefault(folder, ShardWriter(folder, self._builder))


@dataclass(frozen=True)
class Status:
    """What a cache holds, compared with what is wanted.

    Attributes:
        usable: Wanted entries that are present and pass, with their notes.
        missing: Wanted entries that must be made, damaged ones included, in the order asked for.
        damaged: Wanted entries that are present but not what they should be, with the reason.
        stale: Number of entries of the same kind that nothing wants any more.
        stale_bytes: Their size.
    """

    usable: Mapping[Key, Mapping[str, Any]]
    missing: tuple[Key, ...]
    damaged: tuple[tuple[Key, str], ...]
    stale: int
    stale_bytes: int

    @property
    def suspects(self) -> frozenset[Key]:
        """The damaged entries."""
        return frozenset(key for key, _ in self.damaged)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the user should know: damaged entries with reasons, and entries nothing wants."""
        told = []
        if self.damaged:
            shown = "; ".join(f"{key.path.name}: {reason}" for key, reason in self.damaged[:3])
            more = f"; and {len(self.damaged) - 3} more" if len(self.damaged) > 3 else ""
            told.append(f"{len(self.damaged)} cache entries cannot be used and are made again: {shown}{more}.")
        if self.stale:
            told.append(
                f"in the cache, unused by this configuration: {counted(self.stale, 'entry', 'entries')} "
                f"({told_size(self.stale_bytes)}) of other settings or of clips that are gone "
                "(`simpletuner cache prune` removes them)."
            )
        return tuple(told)


def check_entries(
    reader: EntryReader, keys: Sequence[Key], kind: str, *, verify: Collection[Key] | bool = False, workers: int
) -> Status:
    """Look at every wanted entry and count the unwanted ones; nothing is changed or deleted.

    Args:
        reader: Over all folders of the keys.
        keys: The wanted entries.
        kind: The `kind` fact of the entries ("latents", "prompt"), so that a text cache inside a
            latent cache is not mistaken for stale latents.
        verify: Entries whose checksum is computed too, or True for all; of the others only the header is read,
            which shows a foreign, exchanged or shortened entry but no flipped bit.
        workers: Threads; reading and hashing release the interpreter lock.
    """
    usable, damaged = judge_entries(reader, keys, verify=verify, workers=workers)
    stale = [size for _, size in reader.unwanted(keys, kind)]
    missing = tuple(key for key in keys if key not in usable)
    return Status(usable, missing, damaged, len(stale), sum(stale))


def judge_entries(
    reader: EntryReader, keys: Sequence[Key], *, verify: Collection[Key] | bool, workers: int
) -> tuple[dict[Key, Mapping[str, Any]], tuple[tuple[Key, str], ...]]:
    """The usable ones of the wanted entries with their notes, and the damaged ones with reasons; the rest is absent.

    See `check_entries` for the arguments.
    """
    usable: dict[Key, Mapping[str, Any]] = {}
    damaged: list[tuple[Key, str]] = []

    def judge(key: Key) -> Mapping[str, Any] | str | None:
        whole = verify if isinstance(verify, bool) else key in verify
        try:
            return reader.read(key, verify=True)[1] if whole else reader.peek(key)
        except FileNotFoundError:
            return None
        except (DamagedEntryError, OSError) as error:
            return str(error)

    # Handing over one entry costs as much as looking at it.
    pieces = [keys[start : start + _PIECE] for start in range(0, len(keys), _PIECE)]
    with ThreadPoolExecutor(workers) as pool:
        verdicts = itertools.chain.from_iterable(pool.map(lambda piece: [judge(key) for key in piece], pieces))
        for key, verdict in zip(keys, verdicts, strict=True):
            if isinstance(verdict, str):
                damaged.append((key, verdict))
            elif verdict is not None:
                usable[key] = verdict
    return usable, tuple(damaged)


def entry_files(folder: Path) -> Iterator[Path]:
    """Files below a cache folder that are named like entries; hidden folders (trash, marks of builders) are not
    looked into."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith((SUFFIX, PACKED_SUFFIX)) and not name.startswith("."):
                yield Path(parent) / name


def sweep_litter(folder: Path, *, alone: bool) -> int:
    """Remove what killed runs left half-written; returns how many pieces.

    Args:
        folder: A cache folder.
        alone: Whether no other builder is at work there; otherwise young pieces stay, they may be its own.
    """
    return sweep(folder, min_age_seconds=_LITTER_AGE_ALONE_SECONDS if alone else _LITTER_AGE_SECONDS)


def lost_entry(key: Key, error: Exception) -> UserError:
    """The error to raise when an entry that was there at the start is gone or damaged now."""
    reason = "it is gone" if isinstance(error, FileNotFoundError) else str(error)
    return UserError(
        f"cache entry '{key.path}' cannot be read: {reason}",
        "It was there when the run started, so something outside changed it",
        "Start the same command again: the entry is made anew and training resumes from the last checkpoint",
    )


@contextlib.contextmanager
def _opened(key: Key) -> Iterator[tuple[Any, bool]]:
    """The file of an entry, and whether it is compressed."""
    try:
        handle, packed = key.path.open("rb"), False
    except FileNotFoundError:
        handle, packed = key.packed_path.open("rb"), True
    except IsADirectoryError:
        raise DamagedEntryError("it is a folder") from None
    with handle:
        yield handle, packed


def _mapped(handle: Any) -> Blob:
    """A whole file as memory, which the system reads when it is looked at.

    Files of entries are replaced, never changed or shortened, so that a map stays what it was when it was opened.
    """
    if not os.fstat(handle.fileno()).st_size:
        return b""
    if sys.platform == "win32":  # there a mapped file can be neither replaced nor deleted
        return bytearray(handle.read())
    # Copied where it is written to, which nobody does: PyTorch does not like memory that it may not write to.
    return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)


def _peek(handle: Any, size_bytes: int, key: Key, *, packed: bool) -> dict[str, Any]:
    if not packed:
        return peek_entry(handle, size_bytes, key.digest)
    plain_bytes = expanded_size(handle.read(32))
    handle.seek(0)
    return peek_entry(expanding(handle), plain_bytes, key.digest)
