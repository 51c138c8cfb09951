"""Many local headers read at once, by processes: FFmpeg opens files under the interpreter's lock, which threads share.

Each process is a fresh interpreter started the same way on every system, knows paths and nothing else, and ends when
its input does. A file on which it dies or hangs costs that one file and another start; the rest goes on.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from simpletuner.data.headers import READY, Media, read_answer, write_question
from simpletuner.data.sample import UnreadMedia
from simpletuner.data.storage import StoredFile

ASKED_AT_ONCE = 64  # while a chunk is asked for, its process waits
# The imports and the header of one file; a file without an index is read to its end, over a slow network perhaps.
LONGEST_START_SECONDS = 120.0
LONGEST_READ_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 1e6
WATCHED_EVERY_SECONDS = 0.5
# Whatever way this interpreter finds its packages, its children find them too.
PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from simpletuner.data.headers import serve; serve()"


@dataclass(frozen=True)
class LocalHeader:
    """A header to be read.

    Attributes:
        root: Folder of the data set.
        file: The file as it was listed.
    """

    root: Path
    file: StoredFile

    @property
    def patience_seconds(self) -> float:
        """How long reading it may take."""
        return LONGEST_READ_SECONDS + max(self.file.size_bytes, 0) / SLOWEST_BYTES_PER_SECOND


Answer = tuple[Media, str]
Answered = tuple[LocalHeader, Answer]


class NoProcessesError(Exception):
    """No process could be started here; `unread` is what nobody has read."""

    def __init__(self, unread: list[LocalHeader]) -> None:
        super().__init__(f"{len(unread)} headers are left")
        self.unread = unread


def read_in_processes(headers: Iterable[LocalHeader], processes: int, program: str = PROGRAM) -> Iterator[Answered]:
    """(header, facts and hash of the content) as they become ready.

    Args:
        headers: What is to be read.
        processes: How many read at once, at least 1.
        program: What a process runs.
    Raises:
        NoProcessesError: When all that could be read this way has been given, and something is left.
    """
    work = _Work(iter(headers))
    readers = [_Reader(work, program) for _ in range(max(1, processes))]
    try:
        for reader in readers:
            reader.thread.start()
        while any(reader.thread.is_alive() for reader in readers) or not work.answers.empty():
            with contextlib.suppress(queue.Empty):
                yield from work.answers.get(timeout=WATCHED_EVERY_SECONDS)
            for reader in readers:
                reader.end_if_stuck()
    finally:
        work.close()
        for reader in readers:
            reader.end()
    if unread := work.take_rest():
        raise NoProcessesError(unread)


class _Work:
    """What all readers share; usable from several threads."""

    def __init__(self, headers: Iterator[LocalHeader]) -> None:
        self._headers = headers
        self._returned: list[LocalHeader] = []
        self._lock = threading.Lock()
        self._is_closed = False
        self.answers: queue.SimpleQueue[list[Answered]] = queue.SimpleQueue()

    def take(self) -> list[LocalHeader]:
        """The next headers, all of one folder; none when there are no more."""
        with self._lock:
            taken: list[LocalHeader] = []
            while not self._is_closed and len(taken) < ASKED_AT_ONCE:
                header = self._returned.pop() if self._returned else next(self._headers, None)
                if header is None:
                    break
                if taken and header.root != taken[0].root:
                    self._returned.append(header)
                    break
                taken.append(header)
            return taken

    def give_back(self, headers: list[LocalHeader]) -> None:
        with self._lock:
            self._returned += headers

    def close(self) -> None:
        """Let nobody take any more."""
        with self._lock:
            self._is_closed = True

    def take_rest(self) -> list[LocalHeader]:
        """Everything that was never answered."""
        with self._lock:
            return [*self._returned, *self._headers]


@dataclass
class _Reader:
    """A thread that keeps one process busy, and starts another when that is gone."""

    work: _Work
    program: str
    thread: threading.Thread = field(init=False)
    _process: subprocess.Popen[bytes] | None = None
    _deadline: float | None = None  # on the monotonic clock; None while nothing is awaited
    _is_ended: bool = False

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name="headers", daemon=True)

    def end_if_stuck(self) -> None:
        """Kill the process if what is awaited of it takes too long."""
        deadline = self._deadline
        if deadline is not None and time.monotonic() > deadline and self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """Kill the process, wherever it is."""
        self._is_ended = True
        if self._process is not None:
            self._process.kill()
        if self.thread.ident is not None:
            self.thread.join()

    def _run(self) -> None:
        while chunk := self.work.take():
            # Once a process is gone in the middle, one file is asked for at a time: that tells which one it was.
            alone = False
            while chunk and not self._is_ended:
                if self._process is None and not self._start():
                    self.work.give_back(chunk)
                    return
                asked = 1 if alone else len(chunk)
                chunk = self._ask(chunk[:asked]) + chunk[asked:]
                alone = alone or self._process is None
            if chunk:
                self.work.give_back(chunk)
        self._stop()

    def _start(self) -> bool:
        command = [sys.executable, "-c", self.program, json.dumps(sys.path)]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        except OSError:
            return False
        if self._read_line(LONGEST_START_SECONDS).strip().strip(b'"') == READY.encode():
            return True
        self._process.kill()
        self._stop()
        return False

    def _ask(self, chunk: list[LocalHeader]) -> list[LocalHeader]:
        """Have the headers read; gives what is left when the process is gone. Of one header alone that is its fault."""
        assert self._process is not None
        with contextlib.suppress(OSError):  # it is gone, as the next line shows
            _pipe(self._process.stdin).write(write_question(chunk[0].root, [header.file for header in chunk]))
            _pipe(self._process.stdin).flush()
        answers: list[Answered] = []
        try:
            for place, header in enumerate(chunk):
                begun = time.monotonic()
                line = self._read_line(header.patience_seconds)
                if not line.endswith(b"\n"):
                    verdict = self._verdict(time.monotonic() - begun, header)
                    if len(chunk) > 1 or self._is_ended:
                        return chunk[place:]
                    answers.append((header, (verdict, "")))
                    return []
                answers.append((header, read_answer(line)))
            return []
        finally:
            self.work.answers.put(answers)

    def _read_line(self, patience_seconds: float) -> bytes:
        """A line of the process; without an end when it is gone, or was killed because it took too long."""
        assert self._process is not None
        self._deadline = time.monotonic() + patience_seconds
        try:
            return _pipe(self._process.stdout).readline()
        finally:
            self._deadline = None

    def _verdict(self, seconds: float, header: LocalHeader) -> UnreadMedia:
        code = self._stop()
        if seconds >= header.patience_seconds:
            why = f"took longer than {header.patience_seconds:.0f} s"
        else:
            why = f"ended the process that read it ({_told_end(code)})"
        return UnreadMedia(f"reading its header {why}; it is tried again at the next start")

    def _stop(self) -> int:
        """Let the process go; gives its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(OSError):
            _pipe(process.stdin).close()
        _pipe(process.stdout).close()
        return process.wait()


def _pipe(pipe: BinaryIO | object | None) -> BinaryIO:
    assert pipe is not None
    return pipe  # type: ignore[return-value]


def _told_end(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
