"""One run at a time in one folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from simpletuner.core.errors import UserError

LOCK_NAME = ".lock"


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder` while open; the system frees the lock even after a kill.

    Raises:
        UserError: If another process holds it.
    """
    lock = FileLock(folder / LOCK_NAME, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another run is at work in '{folder}'",
            "Two runs in one folder would overwrite each other's checkpoints",
            "Wait for it or stop it, or choose another output_dir",
        ) from error
    try:
        yield
    finally:
        lock.release()
