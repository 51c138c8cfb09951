"""One run at a time in one folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from simpletuner.core.errors import UserError

LOCK_NAME = ".lock"


def is_held(folder: Path) -> bool:
    """Whether a run is at work in `folder`, by the lock that the system takes away from the dead.

    Says no where the folder cannot be written: whoever works there could.
    """
    path = folder / LOCK_NAME
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder` while open; the system frees the lock even after a kill.

    Raises:
        UserError: If another process holds it.
    """
    lock = FileLock(folder / LOCK_NAME)
    try:
        # Longer than `is_held` needs for its look.
        lock.acquire(timeout=0.5)
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
