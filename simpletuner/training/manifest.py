"""Folders of checkpoints: their names, and the list of files that makes one trustworthy, with sizes and SHA-256.

Torch-free. Knows nothing of what the files mean. A folder whose manifest does not verify is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, Final

MANIFEST_NAME: Final = "checkpoint_manifest.json"
MANIFEST_VERSION: Final = 1

_BLOCK_BYTES = 1 << 20
_NAME: Final = re.compile(r"checkpoint-(0|[1-9][0-9]*)\Z")


class BrokenCheckpointError(Exception):
    """A checkpoint that does not verify; the text says what is wrong with it."""


def step_of(checkpoint: Path) -> int | None:
    """The step in the name of a folder called exactly checkpoint-<step>; None for other names."""
    found = _NAME.match(checkpoint.name)
    return int(found[1]) if found else None


def list_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Steps and folders named exactly checkpoint-<step>, lowest step first, whole or not."""
    if not output_dir.is_dir():
        return []
    found = ((step_of(path), path) for path in output_dir.iterdir())
    return sorted((step, path) for step, path in found if step is not None and path.is_dir())


def newest_complete(output_dir: Path) -> tuple[int, Path] | None:
    """The checkpoint of the highest step that looks complete at a glance (`is_complete`); None if none does."""
    return next(
        ((step, path) for step, path in reversed(list_checkpoints(output_dir)) if is_complete(path, step)), None
    )


def write_manifest(folder: Path, step: int) -> None:
    """List every file of `folder`, which must be complete but for the manifest itself."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {"version": MANIFEST_VERSION, "step": step, "files": files}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def verify_manifest(folder: Path, step: int, needed: tuple[str, ...]) -> None:
    """Prove that `folder` holds the checkpoint of `step`, every byte as it was written.

    Files that the manifest does not list are left alone and never read.

    Args:
        folder: The checkpoint.
        step: The step its name claims.
        needed: Names of the files that must be listed.

    Raises:
        BrokenCheckpointError: If anything is missing, changed, or listed outside the folder.
    """
    manifest = _read_manifest(folder)
    if manifest.get("version") != MANIFEST_VERSION:
        raise BrokenCheckpointError(f"its manifest has version {manifest.get('version')}, known is {MANIFEST_VERSION}")
    if manifest.get("step") != step:
        raise BrokenCheckpointError(f"its manifest belongs to step {manifest.get('step')}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise BrokenCheckpointError("its manifest lists no files")
    unlisted = [name for name in needed if name not in files]
    if unlisted:
        raise BrokenCheckpointError(f"its manifest does not list {', '.join(unlisted)}")
    for name, facts in files.items():
        _verify_file(folder, name, facts)


def is_complete(folder: Path, step: int) -> bool:
    """Whether `folder` holds all files of the checkpoint of `step` in their sizes; a glance, no proof."""
    try:
        manifest = _read_manifest(folder)
        files = dict(manifest.get("files") or {})
        return manifest.get("step") == step and all(
            _stays_inside(name) and (folder / name).stat().st_size == facts.get("size") for name, facts in files.items()
        )
    except (BrokenCheckpointError, OSError, AttributeError, TypeError, ValueError):
        return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenCheckpointError(f"it has no {MANIFEST_NAME}") from None
    except (OSError, ValueError) as error:
        raise BrokenCheckpointError(f"its {MANIFEST_NAME} cannot be read ({error})") from error
    if not isinstance(manifest, dict):
        raise BrokenCheckpointError(f"its {MANIFEST_NAME} is not a JSON object")
    return manifest


def _verify_file(folder: Path, name: str, facts: Any) -> None:
    if not isinstance(facts, dict) or not _stays_inside(name):
        raise BrokenCheckpointError(f"its manifest has an entry that is none of its files: {name!r}")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise BrokenCheckpointError(f"{name} is missing")
    try:
        size = path.stat().st_size
        if size != facts.get("size"):
            raise BrokenCheckpointError(f"{name} has {size} bytes instead of {facts.get('size')}")
        if file_digest(path) != facts.get("sha256"):
            raise BrokenCheckpointError(f"{name} has changed since it was saved (its SHA-256 differs)")
    except OSError as error:
        raise BrokenCheckpointError(f"{name} cannot be read ({error.strerror or error})") from error


def _stays_inside(name: str) -> bool:
    """Whether a listed name is a path of forward slashes below the checkpoint."""
    path = PurePosixPath(name)
    return path.as_posix() == name and "\\" not in name and not path.is_absolute() and not {".", ".."} & set(path.parts)
