"""Removes what a cache need not keep: entries nothing wants, damaged ones, second copies.

Only ever asked for by a person (`simpletuner cache prune`). Sources are never touched, and neither is any file that is
not an entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simpletuner.caching.claims import Claims, is_being_built
from simpletuner.caching.shards import Record, ShardReader, ShardWriter, remove_shard, seal_abandoned, shards_in
from simpletuner.caching.store import EntryReader, Key, judge_entries
from simpletuner.core.errors import UserError
from simpletuner.core.files import retire


@dataclass(frozen=True)
class Waste:
    """What `remove_waste` would remove.

    Attributes:
        damaged: Wanted entries that are not what they should be, with the reason.
        stale: (place, bytes) of entries nothing wants.
        damaged_bytes: Size of the damaged ones.
        models: (folder, bytes, reason) of quantized models; the reason is empty where nothing wants them.
    """

    damaged: tuple[tuple[Key, str], ...]
    stale: tuple[tuple[Path | Record, int], ...]
    damaged_bytes: int
    models: tuple[tuple[Path, int, str], ...] = ()

    @property
    def stale_count(self) -> int:
        return len(self.stale) + sum(not reason for _, _, reason in self.models)

    @property
    def damaged_count(self) -> int:
        return len(self.damaged) + sum(bool(reason) for _, _, reason in self.models)

    @property
    def entries(self) -> int:
        return self.stale_count + self.damaged_count

    @property
    def bytes(self) -> int:
        return self.damaged_bytes + sum(size for _, size in self.stale) + sum(size for _, size, _ in self.models)


def find_waste(wanted: Mapping[str, Sequence[Key]], folders: Iterable[Path], *, workers: int) -> Waste:
    """Everything in `folders` that no wanted entry needs; every wanted one is verified to the last byte.

    Args:
        wanted: Kind ("latents", "prompt") -> wanted entries; entries of other kinds are left alone.
        folders: All folders of the keys.
        workers: Threads that verify.
    """
    reader = EntryReader(dict.fromkeys(folders))
    damaged: list[tuple[Key, str]] = []
    stale: list[tuple[Path | Record, int]] = []
    for kind, keys in wanted.items():
        damaged += judge_entries(reader, keys, verify=True, workers=workers)[1]
        stale += reader.unwanted(keys, kind)
    return Waste(tuple(damaged), tuple(stale), sum(reader.stored_bytes(key) for key, _ in damaged))


def remove_waste(waste: Waste, folders: Iterable[Path], advance: Callable[[int], None]) -> None:
    """Remove it; shards are written anew without the records that go.

    Args:
        waste: What `find_waste` found.
        folders: The folders it was found in.
        advance: Called with the number of entries removed so far.

    Raises:
        UserError: If another process builds in one of the folders.
    """
    places = list(dict.fromkeys(folder for folder in folders if folder.is_dir()))
    for folder in places:
        if is_being_built(folder):
            raise UserError(
                f"another process is filling the cache in '{folder}'",
                "A cache cannot be cleared while somebody adds to it",
                "Wait until it is done, or stop it",
            )
    reader, done = EntryReader(places), 0
    for key, _ in waste.damaged:
        reader.discard(key)
        advance(done := done + 1)
    dropped: dict[Path, set[Record]] = defaultdict(set)
    for place, _ in waste.stale:
        if isinstance(place, Record):
            dropped[place.path].add(place)
        else:
            retire(place)
            _remove_empty(place.parent, places)
        advance(done := done + 1)
    for folder in places:
        _rewrite_shards(folder, dropped)
    for folder, _, _ in waste.models:
        retire(folder)
        advance(done := done + 1)


def _rewrite_shards(folder: Path, dropped: Mapping[Path, Collection[Record]]) -> None:
    """Copy the records worth keeping into new shards, then remove the old ones that had others too."""
    with Claims([folder]) as claims:
        seal_abandoned(folder, lambda writer: claims.is_alive(folder, writer))
        shards = ShardReader(folder)
        kept: dict[Path, list[Record]] = defaultdict(list)
        for record in shards.all_records():
            if record not in dropped.get(record.path, ()):
                kept[record.path].append(record)
        # Records that were given up are in no list, but their bytes are in the file.
        old = [path for path in shards_in(folder) if sum(r.end - r.offset for r in kept[path]) < path.stat().st_size]
        writer = ShardWriter(folder, claims.builder)
        for path in old:
            for record in kept[path]:
                writer.append(record.kind, record.digest, shards.read(record), record.plain_bytes)
        writer.close()
        # Killed before this line, both copies are there and the next pruning removes one.
        for path in old:
            remove_shard(path)


def _remove_empty(folder: Path, roots: Collection[Path]) -> None:
    while folder not in roots and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
