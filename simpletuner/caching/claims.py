"""Several processes fill one cache together: each entry is claimed by one of them while it is made.

    <cache folder>/.building/<builder>.alive   who builds here; its time stamp is renewed while the process lives
    <cache folder>/.building/<digest>.claim    which builder is making this entry

A claim counts as long as its builder lives: on this machine the process is looked up, from elsewhere the time stamp
decides. Two processes that made one entry at once would only waste work, since entries appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import psutil

from simpletuner.core.files import create_exclusive, discard_if

FOLDER = ".building"
HEARTBEAT_SECONDS = 5.0
# A builder on another machine counts as gone after this long without a sign of life.
SILENCE_SECONDS = 60.0
_ALIVE_SUFFIX, _CLAIM_SUFFIX = ".alive", ".claim"
_START_TOLERANCE_SECONDS = 2.0


class Claims:
    """This process as one builder of the caches in `folders`; open it with `with`."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.builder = f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._folders = list(dict.fromkeys(folders))
        self._taken: set[Path] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="cache-heartbeat", daemon=True)

    def __enter__(self) -> Claims:
        for folder in self._folders:
            self._sign_on(folder)
            self._clear_dead(folder)
        self._pulse.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._pulse.join()
        with self._lock:
            marks = [*self._taken, *(self._own_mark(folder) for folder in self._folders)]
            self._taken.clear()
        for mark in marks:
            mark.unlink(missing_ok=True)
        for folder in self._folders:
            with contextlib.suppress(OSError):  # others build here
                (folder / FOLDER).rmdir()

    def take(self, folder: Path, digest: str) -> bool:
        """Claim the entry `digest` in `folder`; False while another living builder makes it.

        Whoever gets it must look again whether the entry exists by now, make it, and then call `release`.
        """
        mark = folder / FOLDER / f"{digest}{_CLAIM_SUFFIX}"
        while not create_exclusive(mark, self.builder.encode("ascii")):
            try:
                owner = mark.read_bytes()
            except FileNotFoundError:
                continue  # released just now
            if self.is_alive(folder, owner.decode("ascii", "replace")):
                return False
            discard_if(mark, owner)
        with self._lock:
            self._taken.add(mark)
        return True

    def release(self, folder: Path, digest: str) -> None:
        """Give a claim back, whether its entry was made or cannot be made."""
        mark = folder / FOLDER / f"{digest}{_CLAIM_SUFFIX}"
        with self._lock:
            self._taken.discard(mark)
        mark.unlink(missing_ok=True)

    def has_company(self, folder: Path) -> bool:
        """Whether another living builder is at work in `folder`."""
        return any(name != self.builder and self.is_alive(folder, name) for name in _builders(folder))

    def is_alive(self, folder: Path, builder: str) -> bool:
        """Whether a builder of `folder` is at work; see the module's text for how this is known."""
        mark = folder / FOLDER / f"{builder}{_ALIVE_SUFFIX}"
        try:
            facts = json.loads(mark.read_text(encoding="ascii"))
            if facts["host"] == _host():
                return _runs(facts["pid"], facts["started"])
            own = self._own_mark(folder)
            # Both stamps come from the file system that holds the cache, so clocks need not agree.
            os.utime(own)
            return own.stat().st_mtime - mark.stat().st_mtime < SILENCE_SECONDS
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def _own_mark(self, folder: Path) -> Path:
        return folder / FOLDER / f"{self.builder}{_ALIVE_SUFFIX}"

    def _sign_on(self, folder: Path) -> None:
        facts = {"host": _host(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        while True:
            # A builder that leaves removes the folder when it is empty, perhaps between its making and its use.
            with contextlib.suppress(FileNotFoundError):
                create_exclusive(self._own_mark(folder), json.dumps(facts).encode("ascii"))
                return

    def _clear_dead(self, folder: Path) -> None:
        for builder in _builders(folder):
            if not self.is_alive(folder, builder):
                (folder / FOLDER / f"{builder}{_ALIVE_SUFFIX}").unlink(missing_ok=True)
        for mark in (folder / FOLDER).glob(f"*{_CLAIM_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                owner = mark.read_bytes()
                if not self.is_alive(folder, owner.decode("ascii", "replace")):
                    discard_if(mark, owner)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            for folder in self._folders:
                try:
                    os.utime(self._own_mark(folder))
                except FileNotFoundError:
                    self._sign_on(folder)  # somebody cleaned up too well
                except OSError:
                    continue  # a network file system that is away for a moment


def is_being_built(folder: Path) -> bool:
    """Whether a living builder is at work in `folder`; creates nothing there unless somebody else did."""
    if not any(True for _ in _builders(folder)):
        return False
    with Claims([folder]) as claims:
        return claims.has_company(folder)


def _builders(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder / FOLDER)
    except FileNotFoundError:
        return []
    return [name.removesuffix(_ALIVE_SUFFIX) for name in names if name.endswith(_ALIVE_SUFFIX)]


def _runs(pid: int, started: float) -> bool:
    """Whether the process that began at `started` still runs; another one may have inherited its number."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < _START_TOLERANCE_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _host() -> str:
    """Name of the machine, fit for a file name."""
    return "".join(sign if sign.isalnum() and sign.isascii() else "_" for sign in socket.gethostname()) or "host"
