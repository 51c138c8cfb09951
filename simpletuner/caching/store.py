"""Cache entries on the disk: one safetensors file per entry, verified before it is believed.

An entry carries its full key, the shape of its tensors and a checksum in its own header, so that a
truncated, damaged, exchanged or foreign file is recognised and made again instead of trained. This
module knows nothing of clips, captions or models; `latents.py` and `prompts.py` do.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from simpletuner.caching.fingerprint import canonical_json, fingerprint
from simpletuner.core.errors import UserError
from simpletuner.core.files import sweep, write_atomic

FORMAT = "simpletuner-cache-1"
SUFFIX = ".safetensors"
_MAX_STEM_BYTES = 180  # file systems allow 255 bytes per name; the fingerprint and suffix need 29
_MAX_HEADER_BYTES = 1 << 20
_LITTER_AGE_SECONDS = 3600.0  # younger staging files may belong to a live run that shares the cache


@dataclass(frozen=True)
class Key:
    """Where an entry lies and what it must contain.

    Attributes:
        path: File of the entry.
        facts: Everything that shapes its tensors; see `fingerprint.py`.
        digest: Fingerprint of `facts`, 64 hexadecimal digits.
    """

    path: Path
    facts: Mapping[str, Any] = field(compare=False)
    digest: str

    @classmethod
    def of(cls, folder: Path, name: str, facts: Mapping[str, Any]) -> Key:
        """Key of the entry for the source `name` (a path with forward slashes) below `folder`.

        The file is `<folder>/<sub-folders of name>/<stem>-<16 digits of the fingerprint>.safetensors`,
        so `clip.mp4` and `clip.mov` never share one.

        Raises:
            ValueError: If `name` leaves the folder.
        """
        source = PurePosixPath(name)
        if source.is_absolute() or ".." in source.parts:
            raise ValueError(f"cache entry name {name!r} leaves the cache folder")
        whole = fingerprint(facts)
        # Bytes that are not UTF-8 (which safetensors refuses in paths) become "?"; the fingerprint
        # still tells such names apart.
        folders = [part.encode("utf-8", "replace").decode("utf-8") for part in source.parts[:-1]]
        stem = source.stem.encode("utf-8", "replace")[:_MAX_STEM_BYTES].decode("utf-8", "ignore")
        return cls(folder.joinpath(*folders, f"{stem}-{whole[:16]}{SUFFIX}"), facts, whole)


class DamagedEntryError(Exception):
    """A file that must not be used as the entry it claims to be; the text says why."""


def write_entry(key: Key, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> None:
    """Write an entry, complete or not at all.

    Args:
        key: Where and what.
        tensors: CPU tensors by name.
        notes: JSON facts kept beside the tensors that do not shape them, such as words cut off.

    Raises:
        UserError: If the disk is full or the folder cannot be written (exit code 6).
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    label = {
        "format": FORMAT,
        "fingerprint": key.digest,
        "facts": dict(key.facts),
        "notes": dict(notes or {}),
        "shapes": {name: list(tensor.shape) for name, tensor in plain.items()},
    }
    label["checksum"] = _checksum(plain, label)
    # One metadata key only: safetensors writes several in an order that differs between processes,
    # and two caches of the same clips must be equal byte for byte.
    write_atomic(key.path, save(plain, metadata={"entry": canonical_json(label)}))


def read_entry(key: Key, *, verify: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and notes of an entry, memory-mapped.

    Args:
        key: Where and what.
        verify: Whether to compute the checksum too (a millisecond per 2 MB); without it only the
            key and the shapes are compared.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedEntryError: If the file is not what `key` asks for.
    """
    try:
        with safe_open(os.fspath(key.path), framework="pt") as handle:
            label = _parse_label((handle.metadata() or {}).get("entry", ""))
            _check_label(label, key, verify=verify)
            shapes = {name: handle.get_slice(name).get_shape() for name in handle.keys()}  # noqa: SIM118
            if shapes != label.get("shapes"):
                raise DamagedEntryError("its tensors do not have the noted shapes")
            tensors = {name: handle.get_tensor(name) for name in shapes}
    except (SafetensorError, IsADirectoryError, ValueError, TypeError) as error:
        raise DamagedEntryError(f"not a readable safetensors file ({error})") from error
    if verify and label.get("checksum") != _checksum(tensors, label):
        raise DamagedEntryError("its checksum does not match its content")
    return tensors, label["notes"]


def _parse_label(text: str) -> dict[str, Any]:
    try:
        label = json.loads(text)
    except ValueError:
        raise DamagedEntryError("it carries no entry label") from None
    if not isinstance(label, dict) or label.get("format") != FORMAT or not isinstance(label.get("notes"), dict):
        raise DamagedEntryError(f"it is not an entry of the format {FORMAT}")
    return label


def _check_label(label: Mapping[str, Any], key: Key, *, verify: bool) -> None:
    if label.get("fingerprint") != key.digest:
        raise DamagedEntryError("it belongs to another source or to other settings")
    if verify and fingerprint(label.get("facts") or {}) != key.digest:
        raise DamagedEntryError("its noted facts do not match its fingerprint")


def _checksum(tensors: Mapping[str, Tensor], label: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(canonical_json({k: v for k, v in label.items() if k != "checksum"}).encode("ascii"))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Status:
    """What a cache holds, compared with what is wanted.

    Attributes:
        usable: Wanted entries that are present and verified, with their notes.
        missing: Wanted entries that must be made, damaged ones included, in the order asked for.
        damaged: Present files that are not what their name says, with the reason.
        stale: Number of entries of the same kind that nothing wants any more.
        stale_bytes: Their size.
    """

    usable: Mapping[Key, Mapping[str, Any]]
    missing: tuple[Key, ...]
    damaged: tuple[tuple[Path, str], ...]
    stale: int
    stale_bytes: int

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the user should know: damaged entries with reasons, and entries nothing wants."""
        told = []
        if self.damaged:
            shown = "; ".join(f"{path.name}: {reason}" for path, reason in self.damaged[:3])
            more = f"; and {len(self.damaged) - 3} more" if len(self.damaged) > 3 else ""
            told.append(f"{len(self.damaged)} cache entries cannot be used and are made again: {shown}{more}.")
        if self.stale:
            told.append(
                f"{self.stale} cache entries ({self.stale_bytes / 1e6:.1f} MB) belong to other settings or to clips "
                "that are gone; they are not used and not deleted."
            )
        return tuple(told)


def check_entries(keys: Sequence[Key], folders: Iterable[Path], kind: str, *, workers: int) -> Status:
    """Verify every wanted entry and count the unwanted ones; nothing is changed or deleted.

    Args:
        keys: The wanted entries.
        folders: Cache folders to look through for unwanted entries.
        kind: The `kind` fact of the entries ("latents", "prompt"), so that a text cache inside a
            latent cache is not mistaken for stale latents.
        workers: Threads; reading and hashing release the interpreter lock.
    """
    usable: dict[Key, Mapping[str, Any]] = {}
    damaged: list[tuple[Path, str]] = []
    with ThreadPoolExecutor(workers) as pool:
        for key, verdict in zip(keys, pool.map(_judge, keys), strict=True):
            if isinstance(verdict, str):
                damaged.append((key.path, verdict))
            elif verdict is not None:
                usable[key] = verdict
    wanted = {key.path for key in keys}
    stale = [size for path, size in _entries_below(folders) if path not in wanted and _kind_of(path) == kind]
    missing = tuple(key for key in keys if key not in usable)
    return Status(usable, missing, tuple(damaged), len(stale), sum(stale))


def _judge(key: Key) -> Mapping[str, Any] | str | None:
    """Notes of a usable entry, the reason why a present one is not usable, None if it is absent."""
    try:
        return read_entry(key, verify=True)[1]
    except FileNotFoundError:
        return None
    except (DamagedEntryError, OSError) as error:
        return str(error)


def _entries_below(folders: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    seen: set[Path] = set()
    for folder in folders:
        for path in folder.rglob(f"*{SUFFIX}"):
            if path not in seen and path.is_file():
                seen.add(path)
                yield path, path.stat().st_size


def _kind_of(path: Path) -> str | None:
    """The kind an entry states in its header; None for a file that is not an entry."""
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                return None
            header = json.loads(handle.read(length))
        return str(json.loads(header["__metadata__"]["entry"])["facts"]["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sweep_litter(folders: Iterable[Path]) -> int:
    """Remove what killed runs left half-written; a live run's young files stay. Returns how many."""
    return sum(sweep(folder, min_age_seconds=_LITTER_AGE_SECONDS) for folder in folders if folder.is_dir())


def lost_entry(key: Key, error: Exception) -> UserError:
    """The error to raise when an entry that was verified at the start is gone or damaged now."""
    reason = "it is gone" if isinstance(error, FileNotFoundError) else str(error)
    return UserError(
        f"cache entry '{key.path}' cannot be read: {reason}",
        "It was complete when the run started, so something outside changed it",
        "Start the same command again: the entry is made anew and training resumes from the last checkpoint",
    )
