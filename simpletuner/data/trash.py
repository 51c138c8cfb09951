"""Moves damaged files into a trash folder of the cache, for those who asked for it; nothing is ever deleted.

A file goes only after it was looked at once more: all its bytes could be read, nobody has written to it for a while,
and the decoder refuses them again. `undo.jsonl` in the trash folder says where everything was. Who asks is decided
in the recipe.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from simpletuner.core.files import move_file
from simpletuner.data.listing import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from simpletuner.data.sample import DamagedMedia, ShortMedia, Unfit
from simpletuner.data.storage import Storage, StoredFile
from simpletuner.events.lines import LineFile

TRASH_FOLDER = "trash"
UNDO_NAME = "undo.jsonl"
SIDECAR_ENDINGS = (".txt", ".json")
CHUNK_BYTES = 1 << 22
# Somebody may still be copying the file; a copy that stands still for so long has been given up.
SETTLED_SECONDS = 600.0


@dataclass(frozen=True)
class Spared:
    """A damaged file that stays where it is, and why."""

    reason: str


def confirm_damage(
    storage: Storage, file: StoredFile, look_again: Callable[[], object], *, settled_seconds: float = SETTLED_SECONDS
) -> str | Spared:
    """What is wrong with `file`, found a second time; or why that is not certain.

    Args:
        storage: Where it lies.
        file: The file as it was when it failed.
        look_again: Probes or decodes it once more.
        settled_seconds: How long it must not have been written to.
    """
    local = storage.local_path(file.path)
    if local is None:
        return Spared("only files of this machine are moved")
    try:
        status = local.stat()
        if time.time() - status.st_mtime < settled_seconds:
            return Spared(f"it was written to in the last {settled_seconds / 60:.0f} minutes")
        if _count_bytes(storage, file.path) != file.size_bytes or storage.stat(file.path) != file:
            return Spared("it has changed since it failed")
        look_again()
    except ShortMedia:
        return Spared("its beginning can be trained")
    except DamagedMedia as damage:
        return damage.reason
    except (Unfit, OSError) as error:
        return Spared(f"its bytes could not all be read ({error})")
    return Spared("this time it could be read")


def move_to_trash(storage: Storage, path: str, cache_folder: Path, reason: str) -> tuple[Path, ...] | Spared:
    """Move a file and the captions that are only its own into `<cache_folder>/trash`; gives their new places.

    Args:
        storage: Where the file lies; must be a folder of this machine.
        path: The file.
        cache_folder: `cache_dir_vae` of the data set.
        reason: What is wrong with it, for the record.

    Raises:
        UserError: If the disk is full, or one of the folders cannot be written.
    """
    local = storage.local_path(path)
    if local is None:
        return Spared("only files of this machine are moved")
    trash = cache_folder / TRASH_FOLDER
    if Path(storage.place).resolve() in trash.resolve().parents:
        return Spared(f"the trash folder '{trash}' lies inside the data set, which would find it there again")
    relative = Path(path)
    sources = [(local, relative)]
    if not _has_namesake(local):
        for ending in SIDECAR_ENDINGS:
            sidecar = local.with_suffix(ending)
            if sidecar.is_file():
                sources.append((sidecar, relative.with_suffix(ending)))
    moved = [(source, _free_name(trash / place)) for source, place in sources]
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    undo = LineFile(trash / UNDO_NAME)
    try:
        for source, target in moved:
            back = f"mv -n {shlex.quote(str(target.resolve()))} {shlex.quote(str(source.absolute()))}"
            facts = {"moved_to": str(target), "was": str(source), "reason": reason, "when": when, "undo": back}
            undo.append(facts, to_disk=True)  # first the record: a kill in between leaves the file where it was
            move_file(source, target)
    finally:
        undo.close()
    return tuple(target for _, target in moved)


def _count_bytes(storage: Storage, path: str) -> int:
    total = 0
    with storage.open(path) as handle:
        while chunk := handle.read(CHUNK_BYTES):
            total += len(chunk)
    return total


def _has_namesake(path: Path) -> bool:
    """Whether another clip or picture shares the name up to its ending, and with it the caption file."""
    media = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
    return any(
        other.name != path.name and other.stem == path.stem and other.suffix.lower() in media
        for other in path.parent.iterdir()
    )


def _free_name(path: Path) -> Path:
    number, free = 2, path
    while free.exists():
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return free
