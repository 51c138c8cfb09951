"""Many entries in few files: append-only shards, each record guarded on its own.

    <cache folder>/shards/<writer>-0000.shard         records, one after the other
    <cache folder>/shards/<writer>-0000.shard.index   where each begins; written when the shard is full or closed

A shard belongs to the one process whose id is in its name, so no two ever write one file. A shard without an index (its
writer lives, or was killed) is read record by record up to the first that is not whole. Records are read through memory
maps. What the bytes mean is known to `entry.py`.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from simpletuner.caching.entry import DamagedEntryError
from simpletuner.core.files import flush_file, retire, told_as_user_error, write_atomic

FOLDER = "shards"
SUFFIX = ".shard"
INDEX_SUFFIX = ".index"
SHARD_BYTES = 256 << 20
_FORMAT = "simpletuner-shard-1"
_ALIVE, _GIVEN_UP = b"STR1", b"STR0"
# Mark, kind, fingerprint, stored bytes, bytes before compression (0 = not compressed), CRC-32 of all that.
_HEAD = struct.Struct("<4s8s32sQQI")
_KINDS = {"latents": b"latents\0", "prompt": b"prompt\0\0", "features": b"features"}
_NAMES = {code: kind for kind, code in _KINDS.items()}


@dataclass(frozen=True)
class Record:
    """Where one entry lies.

    Attributes:
        path: Its shard.
        offset: First byte of its head.
        stored_bytes: Length of the payload, which follows the head.
        plain_bytes: Length before compression; 0 when it is not compressed.
        kind: "latents" or "prompt".
        digest: Fingerprint, 64 hexadecimal digits.
    """

    path: Path
    offset: int
    stored_bytes: int
    plain_bytes: int
    kind: str
    digest: str

    @property
    def end(self) -> int:
        return self.offset + _HEAD.size + self.stored_bytes


class ShardReader:
    """All shards of one cache folder, those of other processes included; may be used by several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self._records: dict[str, Record] = {}
        self._copies: list[Record] = []
        self._ends: dict[Path, int] = {}
        self._sealed: set[Path] = set()
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.RLock()
        self.refresh()

    def refresh(self) -> None:
        """Notice what was appended since; costs a folder listing and a look at each growing shard."""
        with self._lock:
            paths = _shards_in(self.folder)
            for path in self._ends.keys() - set(paths):
                self._forget(path)
            for path in paths:
                if path not in self._sealed:
                    self._read_on(path)

    def find(self, digest: str) -> Record | None:
        """The record of a fingerprint."""
        return self._records.get(digest)

    def read(self, record: Record) -> bytearray:
        """The stored payload, in memory of its own: within a shard tensors do not lie where a processor wants them.

        Raises:
            FileNotFoundError: If the shard is gone.
            DamagedEntryError: If it has become shorter.
        """
        with self._lock:
            content = self._map(record)
        with memoryview(content) as view:
            return bytearray(view[record.offset + _HEAD.size : record.end])

    def open(self, record: Record) -> BinaryIO:
        """The stored payload as a stream, of which only what is asked for is read; see `read` for errors."""
        with self._lock:
            content = self._map(record)
        return io.BufferedReader(_Slice(content, record.offset + _HEAD.size, record.end), buffer_size=4096)

    def give_up(self, record: Record) -> None:
        """Mark a record as damaged, for this and for later processes; its bytes go when the cache is pruned."""
        with self._lock:
            if self._records.get(record.digest) == record:
                del self._records[record.digest]
            with contextlib.suppress(FileNotFoundError), told_as_user_error(record.path):
                with record.path.open("rb+") as shard:
                    shard.seek(record.offset)
                    shard.write(_GIVEN_UP)
                if _index_of(record.path).exists():
                    seal_shard(record.path)

    def all_records(self) -> list[Record]:
        """Every record that can be read, second copies of one entry included; see `refresh`."""
        with self._lock:
            return [*self._records.values(), *self._copies]

    def _read_on(self, path: Path) -> None:
        start = self._ends.get(path, 0)
        records = _indexed_records(path)
        if records is None:
            records = list(scan_shard(path, start))
        else:
            self._sealed.add(path)
        for record in records:
            if record.offset >= start and self._records.setdefault(record.digest, record) != record:
                self._copies.append(record)
        self._ends[path] = max([start, *(record.end for record in records)])

    def _forget(self, path: Path) -> None:
        self._records = {digest: record for digest, record in self._records.items() if record.path != path}
        self._copies = [record for record in self._copies if record.path != path]
        self._sealed.discard(path)
        self._ends.pop(path, None)
        self._maps.pop(path, None)

    def _map(self, record: Record) -> mmap.mmap:
        content = self._maps.get(record.path)
        if content is None or len(content) < record.end:
            with record.path.open("rb") as shard:
                if os.fstat(shard.fileno()).st_size < record.end:
                    raise DamagedEntryError("its shard ends before it does")
                content = mmap.mmap(shard.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[record.path] = content
        return content


class _Slice(io.RawIOBase):
    """A part of a memory map as a stream."""

    def __init__(self, content: mmap.mmap, start: int, end: int) -> None:
        self._content, self._position, self._end = content, start, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._content[self._position : min(self._end, self._position + len(buffer))]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


class ShardWriter:
    """Appends entries to shards of its own; may be used by several threads."""

    def __init__(self, folder: Path, writer: str, shard_bytes: int = SHARD_BYTES) -> None:
        """
        Args:
            folder: The cache folder.
            writer: Id that no other process has, see `claims.py`.
            shard_bytes: A shard that has reached this size is closed.
        """
        self._folder = folder / FOLDER
        self._writer = writer
        self._shard_bytes = shard_bytes
        self._number = 0
        self._path: Path | None = None
        self._end = 0
        self._lock = threading.Lock()

    def append(self, kind: str, digest: str, payload: bytes | bytearray, plain_bytes: int = 0) -> None:
        """Add one entry; other processes see it at once, whole or not at all.

        Raises:
            UserError: If the disk is full or the folder cannot be written (exit code 6).
        """
        with self._lock:
            path = self._path or self._begin()
            record = Record(path, self._end, len(payload), plain_bytes, kind, digest)
            with told_as_user_error(path), path.open("rb+", buffering=0) as shard:
                # Over what a write that failed may have left behind the last whole record.
                shard.truncate(record.offset)
                shard.seek(record.offset)
                _write_all(shard.fileno(), _head_of(record) + payload)
            self._end = record.end
            if record.end >= self._shard_bytes:
                self._seal()

    def close(self) -> None:
        """Flush the open shard to the disk and write its index."""
        with self._lock:
            if self._path is not None:
                self._seal()

    def _begin(self) -> Path:
        self._path = self._folder / f"{self._writer}-{self._number:04d}{SUFFIX}"
        with told_as_user_error(self._path):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._path.open("xb").close()
        return self._path

    def _seal(self) -> None:
        assert self._path is not None
        seal_shard(self._path)
        self._path, self._end = None, 0
        self._number += 1


def seal_shard(path: Path) -> None:
    """Make a shard final: nothing behind its last whole record, flushed, with an index beside it."""
    end = max((record.end for record in scan_shard(path, 0, given_up=True)), default=0)
    records = list(scan_shard(path, 0))
    if not records:
        remove_shard(path)
        return
    with told_as_user_error(path):
        if path.stat().st_size > end:
            os.truncate(path, end)
        flush_file(path)
    rows = [[r.digest, r.kind, r.offset, r.stored_bytes, r.plain_bytes] for r in records]
    document = {"format": _FORMAT, "size_bytes": end, "records": rows}
    write_atomic(_index_of(path), json.dumps(document, separators=(",", ":")))


def seal_abandoned(folder: Path, is_alive: Callable[[str], bool]) -> None:
    """Close the shards in a cache folder whose writers are gone; a half-written record at the end is cut off."""
    for path in _shards_in(folder / FOLDER):
        if not _index_of(path).exists() and not is_alive(writer_of(path)):
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                seal_shard(path)


def shards_in(folder: Path) -> list[Path]:
    """All shards of a cache folder."""
    return _shards_in(folder / FOLDER)


def remove_shard(path: Path) -> None:
    """Remove a shard, then its index: an index without a shard means nothing."""
    retire(path)
    if _index_of(path).exists():
        retire(_index_of(path))


def writer_of(path: Path) -> str:
    """The id of the process that wrote a shard."""
    return path.name.removesuffix(SUFFIX).rpartition("-")[0]


def scan_shard(path: Path, offset: int, *, given_up: bool = False) -> Iterator[Record]:
    """Whole records of a shard from `offset` (the beginning of one) on; given-up ones only if asked for."""
    try:
        with path.open("rb", buffering=0) as shard:
            size = os.fstat(shard.fileno()).st_size
            while offset + _HEAD.size <= size:
                shard.seek(offset)
                found = _parse_head(shard.read(_HEAD.size), path, offset)
                if found is None or found[0].end > size:
                    return
                record, alive = found
                if alive or given_up:
                    yield record
                offset = record.end
    except FileNotFoundError:
        return


def _indexed_records(path: Path) -> list[Record] | None:
    """Records by the index; None when there is no index that fits the shard."""
    try:
        document = json.loads(_index_of(path).read_text(encoding="ascii"))
        if document["format"] != _FORMAT or path.stat().st_size < document["size_bytes"]:
            return None
        return [
            Record(path, offset, stored, plain, kind, digest)
            for digest, kind, offset, stored, plain in document["records"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shards_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as listing:
            return sorted(Path(item.path) for item in listing if item.name.endswith(SUFFIX))
    except FileNotFoundError:
        return []


def _index_of(path: Path) -> Path:
    return path.with_name(path.name + INDEX_SUFFIX)


def _head_of(record: Record) -> bytes:
    fields = (_KINDS[record.kind], bytes.fromhex(record.digest), record.stored_bytes, record.plain_bytes)
    # The mark is left out of the sum, so that a record can be given up by its mark alone.
    return _HEAD.pack(_ALIVE, *fields, zlib.crc32(_HEAD.pack(b"", *fields, 0)))


def _parse_head(head: bytes, path: Path, offset: int) -> tuple[Record, bool] | None:
    if len(head) < _HEAD.size:
        return None
    mark, kind, digest, stored, plain, checksum = _HEAD.unpack(head)
    intact = zlib.crc32(_HEAD.pack(b"", kind, digest, stored, plain, 0)) == checksum
    if mark not in (_ALIVE, _GIVEN_UP) or not intact or kind not in _NAMES:
        return None
    return Record(path, offset, stored, plain, _NAMES[kind], digest.hex()), mark == _ALIVE


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
