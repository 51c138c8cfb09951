"""Which files of a storage a data set asks for: by ending, without what is hidden or unfinished.

Nothing is opened here; what the files hold is found out in `scan.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simpletuner.data.storage import Listing, Storage, StoredFile
from simpletuner.runtime.seeds import stream_seed

if TYPE_CHECKING:
    from simpletuner.config.dataset import ClipDataset, MediaKind

VIDEO_EXTENSIONS = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif", ".m4v"})
IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tiff"})
UNFINISHED_EXTENSIONS = frozenset({".part", ".crdownload", ".tmp", ".download"})
EXTENSIONS: Mapping[MediaKind, frozenset[str]] = {"video": VIDEO_EXTENSIONS, "image": IMAGE_EXTENSIONS}


@dataclass(frozen=True)
class MediaListing:
    """The files of one data set that its entry asks for.

    Attributes:
        files: Clips (or pictures), sorted by path.
        unnameable: Files whose name is not UTF-8, with the bytes written out.
        ignored: How many files of each ignored kind were passed over.
        everything: The whole listing, caption files included.
        total: How many clips (or pictures) there were before `max_num_samples` chose among them.
    """

    files: tuple[StoredFile, ...]
    unnameable: tuple[str, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)
    everything: Listing = field(default_factory=lambda: Listing(()))
    total: int = 0


def list_media(storage: Storage, dataset: ClipDataset) -> MediaListing:
    """The clips (or pictures) that `storage` holds; other kinds and unfinished files are counted.

    Raises:
        UserError: If the place is missing or cannot be listed.
    """
    found = storage.list_files()
    files: list[StoredFile] = []
    ignored: Counter[str] = Counter(found.passed_over)
    for file in found.files:
        kind = _ignored_kind(file.path, dataset)
        if kind is None:
            files.append(file)
        elif kind:
            ignored[kind] += 1
    unnameable = tuple(path for path in found.unnameable if _ignored_kind(path, dataset) is None)
    chosen = choose_files(files, dataset.max_num_samples, dataset.id)
    return MediaListing(tuple(chosen), unnameable, dict(ignored), found, len(files))


def endings_of(dataset: ClipDataset) -> list[str]:
    """Endings of the files that an entry asks for, those of clips first."""
    return [ending for kind in dataset.kinds for ending in sorted(EXTENSIONS[kind])]


def has_ending(path: str, kind: MediaKind) -> bool:
    """Whether the file's name says that it is a clip, or a picture."""
    return _ending(path) in EXTENSIONS[kind]


def choose_files(files: Sequence[StoredFile], count: int | None, name: str) -> Sequence[StoredFile]:
    """A random part of `files` that stays the same from run to run, in their order.

    Each file has its own lot, so that files which come or go later change the choice by no more
    than themselves.

    Args:
        files: Sorted by path.
        count: How many are kept at most; None keeps all.
        name: Seeds the choice: the id of the data set.
    """
    if count is None or count >= len(files):
        return files
    lots = sorted((stream_seed(0, f"subset/{name}/{file.path}", 0), number) for number, file in enumerate(files))
    return [files[number] for number in sorted(number for _, number in lots[:count])]


def _ignored_kind(path: str, dataset: ClipDataset) -> str | None:
    """Why a file is passed over: None if it is not, an empty text if it is no media file at all."""
    extension = _ending(path)
    if extension in UNFINISHED_EXTENSIONS:
        return f"unfinished downloads ({extension})"
    kind = next((kind for kind, endings in EXTENSIONS.items() if extension in endings), None)
    if kind is None:
        return ""
    return None if kind in dataset.kinds else f"{kind} files"


def _ending(path: str) -> str:
    """`PurePosixPath(path).suffix` in lower case, ten times as fast."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""
