"""The only place that writes files which must survive a crash.

Everything durable goes through here: write under a staging name on the same file system, flush to
the disk, rename to the final name, flush the folder. A reader never sees a half-written file, and
whatever a killed process leaves behind carries a staging or trash name that `sweep` removes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simpletuner.core.errors import ExitCode, UserError

STAGING = ".staging-"
TRASH = ".trash-"
REPLACED = ".replaced-"  # followed by the name that it had, and has again if its successor never came


def write_atomic(path: Path, data: bytes | str) -> None:
    """Put `data` at `path` so that readers see the old content or the new, never a part.

    Raises:
        UserError: If the disk is full or the folder cannot be written (exit code 6).
    """
    payload = data.encode("utf-8") if isinstance(data, str) else data
    with staged_file(path) as staging:
        staging.write_bytes(payload)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as readable JSON through `write_atomic`."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Lend a staging path to fill; commit it to `path` on success, drop it on any exception."""
    with told_as_user_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.parent / f"{STAGING}{uuid.uuid4().hex}"
        try:
            yield staging
            flush_file(staging)
            _rename(staging, path)
            flush_folder(path.parent)
        finally:
            staging.unlink(missing_ok=True)


def commit_file(partial: Path, path: Path) -> None:
    """Give a finished file its name: `partial`, in the same folder, is flushed and becomes `path`.

    For files that are filled over several attempts under a name of their own, such as downloads; others use
    `staged_file`.
    """
    with told_as_user_error(path):
        flush_file(partial)
        _rename(partial, path)
        flush_folder(path.parent)


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Lend a staging folder to fill; on success it becomes `path`, on an exception it goes.

    An existing folder at `path` is deleted only after the new one stands in its place.
    """
    with told_as_user_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.parent / f"{STAGING}{uuid.uuid4().hex}"
        staging.mkdir()
        try:
            yield staging
            for folder, _, names in os.walk(staging):
                for name in names:
                    flush_file(Path(folder) / name)
                flush_folder(Path(folder))
            replaced = set_aside(path, f"{REPLACED}{path.name}") if path.exists() else None
            try:
                _rename(staging, path)
            except OSError:
                if replaced is not None:
                    _rename(replaced, path)
                raise
            flush_folder(path.parent)
            if replaced is not None:
                retire(replaced)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Put a small file at `path` unless there is one already; of several processes exactly one succeeds.

    Readers see the whole content or nothing. It does not outlive a power cut: it marks what a live process does.

    Raises:
        UserError: If the disk is full or the folder cannot be written (exit code 6).
    """
    with told_as_user_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.parent / f"{STAGING}{uuid.uuid4().hex}"
        try:
            staging.write_bytes(data)
            try:
                os.link(staging, path)
            except FileExistsError:
                return False
            except FileNotFoundError:
                raise
            except OSError:
                return _create_in_place(path, data)  # a file system without links
            return True
        finally:
            staging.unlink(missing_ok=True)


def _create_in_place(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as handle:
            handle.write(data)
    except FileExistsError:
        return False
    return True


def discard_if(path: Path, expected: bytes) -> bool:
    """Remove the small file at `path` if it still holds `expected`; says whether it did.

    Made for `create_exclusive`: of several processes that find a mark of a dead one, one removes it, and none
    removes the new mark that the winner puts there.
    """
    aside = path.parent / f"{TRASH}{uuid.uuid4().hex}"
    try:
        _rename(path, aside)
        found = aside.read_bytes()
    except FileNotFoundError:
        return False
    if found != expected:
        create_exclusive(path, found)
    aside.unlink(missing_ok=True)
    return found == expected


def move_file(source: Path, target: Path) -> None:
    """Move a file to a new name, also to another disk; at every moment at least one of the two is whole.

    Raises:
        FileExistsError: If there is something at `target`.
        UserError: If the disk is full or one of the folders cannot be written (exit code 6).
    """
    if target.exists():
        raise FileExistsError(f"'{target}' is already there")
    with told_as_user_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with staged_file(target) as staging:
                shutil.copy2(source, staging)
            source.unlink()
        flush_folder(target.parent)
        flush_folder(source.parent)


def retire(path: Path) -> None:
    """Remove a folder or file: rename it out of sight first, so that no half of it is ever offered."""
    _delete(set_aside(path, f"{TRASH}{uuid.uuid4().hex}"))


def set_aside(path: Path, name: str) -> Path:
    """Rename `path` to `name` in its folder, in place of what is there; gives the new path."""
    aside = path.parent / name
    if aside.is_dir():
        shutil.rmtree(aside)
    _rename(path, aside)
    return aside


def _rename(source: Path, target: Path) -> None:
    os.replace(source, target)  # noqa: PTH105 - one name for every Python; Path keeps a copy of its own in 3.10


def _delete(trash: Path) -> None:
    if trash.is_dir():
        shutil.rmtree(trash, ignore_errors=True)
    else:
        trash.unlink(missing_ok=True)


def sweep(folder: Path, *, min_age_seconds: float = 0.0, recursive: bool = True) -> int:
    """Remove what a killed process left in `folder`; returns how many pieces.

    What was set aside for a successor that never came gets its name back. Call it only where no
    other process is writing, or with a `min_age_seconds` that no live process needs for one file.
    """
    newest = time.time() - min_age_seconds
    litter = []
    for parent, folders, files in os.walk(folder):
        found = [Path(parent) / name for name in [*folders, *files] if name.startswith((STAGING, TRASH, REPLACED))]
        litter += [path for path in found if min_age_seconds <= 0 or _changed_before(path, newest)]
        if not recursive:
            break
    for path in litter:
        original = path.with_name(path.name.removeprefix(REPLACED))
        if path.name.startswith(REPLACED) and not original.exists():
            _rename(path, original)
        else:
            _delete(path)
    return len(litter)


def _changed_before(path: Path, moment: float) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime < moment
    return False


def ensure_writable(folder: Path, purpose: str) -> None:
    """Create `folder` and prove that it can be written.

    Raises:
        UserError: If it cannot, naming the folder and the `purpose` it was wanted for.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{STAGING}{uuid.uuid4().hex}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{purpose} '{folder}' cannot be written ({error.strerror or error})",
            "The run must be able to save what it makes",
            "Choose another folder, or correct its permissions",
        ) from error


@contextlib.contextmanager
def told_as_user_error(path: Path) -> Iterator[None]:
    """Turn a full or forbidden disk into a `UserError` that names `path` and the space left."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the disk while writing '{path}' ({_free_space(path)} free)",
                "Nothing that was complete is lost: finished files stay and are used again",
                "Free some space and start the same command again",
                exit_code=ExitCode.DISK,
            ) from error
        if error.errno == errno.EFBIG:
            raise UserError(
                f"'{path}' became larger than a file may be there",
                "FAT32 holds files of up to 4 GiB, and `ulimit -f` may hold a limit of its own",
                "Put output_dir or cache_dir on another disk, or raise the limit",
                exit_code=ExitCode.DISK,
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"'{path}' cannot be written ({error.strerror})",
                "The folder must allow writing",
                "Choose another folder, or correct its permissions",
            ) from error
        raise


def flush_file(path: Path) -> None:
    """Ask the system to put the content of `path` on the disk."""
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def flush_folder(path: Path) -> None:
    """Ask the system to put the names in `path` on the disk; Windows offers no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_space(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB"
    return "an unknown amount"
