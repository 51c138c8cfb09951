"""Writes checkpoints beside training: at most one at a time, and no fault of one stays unnoticed.

Knows nothing of what a checkpoint holds or which ones are kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from simpletuner.training.snapshot import Snapshot, write_snapshot


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is on the disk.

    Attributes:
        snapshot: What it holds.
        path: Its folder.
        seconds: From the moment the snapshot was handed over.
        stalled_seconds: For how long training was held up by it.
    """

    snapshot: Snapshot
    path: Path
    seconds: float
    stalled_seconds: float


class CheckpointSaver:
    """Writes snapshots into one folder; made for one training thread."""

    def __init__(self, folder: Path, after: Callable[[Saved], None], *, in_background: bool = True) -> None:
        """Nothing is written yet.

        Args:
            folder: The run's output folder.
            after: Called when a checkpoint stands, on the thread that wrote it.
            in_background: Whether to write beside training; else `save` returns when all is done.
        """
        self._folder = folder
        self._after = after
        self._in_background = in_background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, take: Callable[[], Snapshot]) -> None:
        """Take a snapshot and write it; waits for the one before first.

        Raises:
            UserError: What went wrong with the one before; with `in_background` false with this one.
        """
        started = time.monotonic()
        self.finish()
        snapshot = take()
        if not self._in_background:
            self._write(snapshot, started, None)
            self.check()
            return
        stalled = time.monotonic() - started
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, started, stalled), name="checkpoint", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong since the last call, if anything did; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def finish(self) -> None:
        """Wait for the checkpoint being written, and raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _write(self, snapshot: Snapshot, started: float, stalled: float | None) -> None:
        try:
            path = write_snapshot(snapshot, self._folder)
            seconds = time.monotonic() - started
            self._after(Saved(snapshot, path, seconds, seconds if stalled is None else stalled))
        except BaseException as error:  # noqa: BLE001 - handed to the training thread, which raises it
            self._error = error
