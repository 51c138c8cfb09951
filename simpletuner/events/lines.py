"""Append-only files of JSON lines that survive a kill at any moment.

A line reaches the file in one system call or is taken back; a line torn by a power cut is cut off
when the file is opened again. Readers may follow the file while it grows.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simpletuner.core.files import flush_file, flush_folder, told_as_user_error, write_atomic

_TAIL_BYTES = 1 << 16


def encode_line(record: Mapping[str, Any]) -> bytes:
    """`record` as one line of strict JSON; numbers that are not finite become null."""
    try:
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(record), ensure_ascii=False, separators=(",", ":"), default=_plain)
    # File names that are not UTF-8 arrive with surrogates; they become question marks here only.
    return text.encode("utf-8", "replace") + b"\n"


def read_lines(path: Path, marks: Sequence[bytes] = ()) -> Iterator[dict[str, Any]]:
    """Records of a file in order; a torn or foreign line is passed over, a missing file is empty.

    With `marks` only lines that hold one of these bytes are looked at, which is much quicker than reading them all.
    """
    try:
        handle = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return
    with handle:
        for line in handle:
            if marks and not any(mark in line for mark in marks):
                continue
            record = _parse(line)
            if record is not None:
                yield record


def read_from(path: Path, offset: int, limit: int) -> list[tuple[dict[str, Any], int]]:
    """Up to `limit` whole records behind `offset`, each with the offset behind its line.

    A line that is still being written is left for the next call; lines that are no records are passed over.
    """
    found: list[tuple[dict[str, Any], int]] = []
    try:
        handle = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return found
    with handle:
        handle.seek(offset)
        while len(found) < limit and (line := handle.readline()).endswith(b"\n"):
            offset += len(line)
            record = _parse(line)
            if record is not None:
                found.append((record, offset))
    return found


class LineFile:
    """One file of JSON lines, open for appending."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`, cutting off a torn last line.

        Raises:
            UserError: If the file cannot be written or the disk is full (exit code 6).
        """
        self._path = path
        with told_as_user_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = _open(path)
            self._end, self.last = self._repair()
            flush_folder(path.parent)

    def append(self, record: Mapping[str, Any], *, to_disk: bool = False) -> None:
        """Add one line; it survives a kill on return, and a power cut too with `to_disk`.

        Raises:
            UserError: If the disk is full or closed to writing (exit code 6); the file then ends
                with the line before.
        """
        line = encode_line(record)
        with told_as_user_error(self._path):
            try:
                written = os.write(self._descriptor, line)
                while written < len(line):
                    written += os.write(self._descriptor, line[written:])
                if to_disk:
                    flush_file(self._path)
            except OSError:
                os.ftruncate(self._descriptor, self._end)
                raise
        self._end += len(line)

    @property
    def size_bytes(self) -> int:
        """Length of the file."""
        return self._end

    def keep_only(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite the file, atomically, with only the `wanted` records."""
        self.rewrite([record for record in read_lines(self._path) if wanted(record)])

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace the content, atomically."""
        os.close(self._descriptor)
        try:
            write_atomic(self._path, b"".join(encode_line(record) for record in records))
        finally:
            self._descriptor = _open(self._path)
        self._end, self.last = self._repair()

    def close(self) -> None:
        """Put everything on the disk and close the file."""
        os.close(self._descriptor)
        flush_file(self._path)

    def _repair(self) -> tuple[int, dict[str, Any] | None]:
        """Cut the file after its last whole line; returns its length and that line's record."""
        size = os.fstat(self._descriptor).st_size
        span = _TAIL_BYTES
        while True:
            start = max(0, size - span)
            tail = _read_span(self._path, start, size)
            lines = tail.splitlines(keepends=True)
            # Unless the span reaches the start of the file, its first line may be a fragment.
            for index in range(len(lines) - 1, 0 if start else -1, -1):
                record = _parse(lines[index])
                if record is not None:
                    end = start + sum(map(len, lines[: index + 1]))
                    os.ftruncate(self._descriptor, end)
                    return end, record
            if start == 0:
                os.ftruncate(self._descriptor, 0)
                return 0, None
            span *= 4


def _open(path: Path) -> int:
    # O_APPEND keeps the lines of two processes apart should a user start a run twice.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    if sys.platform == "win32":
        flags |= os.O_BINARY
    return os.open(path, flags, 0o644)


def _read_span(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as handle:
        handle.seek(start)
        return handle.read(end - start)


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return os.fspath(value)
    raise TypeError(f"events carry plain values only, not {type(value).__name__}")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None  # inf - inf and nan - nan are nan
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
