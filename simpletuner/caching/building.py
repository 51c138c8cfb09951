"""One process's share in filling a cache: claims what nobody else makes, waits for what others make.

Both caches are filled through `BuildSite`; how an entry is made is their business (`latents.py`, `prompts.py`).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from simpletuner.caching.claims import Claims, is_being_built
from simpletuner.caching.entry import DamagedEntryError
from simpletuner.caching.shards import seal_abandoned
from simpletuner.caching.store import EntryReader, EntryWriter, Key, Storing, sweep_litter
from simpletuner.core.errors import UserError

Item = TypeVar("Item")

# How often a process that has nothing left to do looks whether the others are done.
_LOOK_SECONDS = 0.2


class Turn(Generic[Item]):
    """An iterator over the items that this process is to make now, each claimed when it is handed out.

    Attributes:
        found: Items whose entries another process has made meanwhile; taken out by `drain`.
        busy: Items that another process is making.
    """

    def __init__(self, items: Sequence[Item], key_of: Callable[[Item], Key], site: BuildSite) -> None:
        self._items = deque(items)
        self._key_of = key_of
        self._site = site
        self._found: list[Item] = []
        self.busy: list[Item] = []

    def __iter__(self) -> Turn[Item]:
        return self

    def __next__(self) -> Item:
        while self._items:
            item = self._items.popleft()
            key = self._key_of(item)
            if not self._site.claims.take(key.folder, key.digest):
                self.busy.append(item)
            elif self._site.has(key):
                self._site.claims.release(key.folder, key.digest)
                self._found.append(item)
            else:
                return item
        raise StopIteration

    def drain(self) -> list[Item]:
        """The items found finished since the last call."""
        found, self._found = self._found, []
        return found


class BuildSite:
    """A cache while this process adds to it.

    Attributes:
        claims: What this process makes.
        writer: Keeps what was made.
    """

    def __init__(self, reader: EntryReader, claims: Claims, storing: Storing, suspects: Collection[Key]) -> None:
        self._reader = reader
        self._suspects = suspects
        self.claims = claims
        self.writer = EntryWriter(claims.builder, storing)

    def has(self, key: Key) -> bool:
        """Whether a usable entry is there by now; a damaged one is taken out of the way."""
        self._reader.refresh(key.folder)
        try:
            if key in self._suspects:
                self._reader.read(key, verify=True)
            else:
                self._reader.peek(key)
        except FileNotFoundError:
            return False
        except DamagedEntryError:
            self._reader.discard(key)
            return False
        return True

    def turns(self, items: Sequence[Item], key_of: Callable[[Item], Key]) -> Iterator[Turn[Item]]:
        """Turns until every item is made, found, or given up by whoever claimed it.

        The caller goes through each turn, releases what it made or could not make, and asks for the next.
        """
        pending = list(items)
        while pending:
            turn = Turn(pending, key_of, self)
            yield turn
            # Nobody can be told when another process finishes; what it drops is made here.
            if len(turn.busy) == len(pending):
                time.sleep(_LOOK_SECONDS)
            pending = turn.busy

    def release(self, key: Key) -> None:
        """Give a claim back, whether its entry was made or cannot be made."""
        self.claims.release(key.folder, key.digest)


@contextlib.contextmanager
def open_site(
    reader: EntryReader, folders: Iterable[Path], storing: Storing, suspects: Collection[Key] = ()
) -> Iterator[BuildSite]:
    """Sign on as a builder of the caches in `folders` and clear away what dead builders left.

    Args:
        reader: Over all these folders.
        folders: Where entries are added.
        storing: How they are kept.
        suspects: Entries that were found damaged; they are verified to the last byte before they are believed.

    Raises:
        UserError: If a folder cannot be written.
    """
    places = list(dict.fromkeys(folders))
    with Claims(places) as claims:
        for folder in places:
            seal_abandoned(folder, partial(claims.is_alive, folder))
            sweep_litter(folder, alone=not claims.has_company(folder))
            reader.refresh(folder)
        site = BuildSite(reader, claims, storing, suspects)
        try:
            yield site
        finally:
            site.writer.close()
            for folder in places:
                reader.refresh(folder)


def tidy(folders: Iterable[Path]) -> None:
    """Clear away what dead builders left, where nothing has to be built; a folder closed to writing is left alone."""
    for folder in dict.fromkeys(folders):
        if folder.is_dir():
            with contextlib.suppress(UserError, PermissionError):
                sweep_litter(folder, alone=not is_being_built(folder))
