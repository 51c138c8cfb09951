"""What is known of every file of a data set, kept in one SQLite file so that nothing is read twice.

One row per file holds its header facts or the verdict on it, valid while size and version are the
same. Beside them stand the texts of caption files and facts that other parts add (scene changes,
picture hashes). The index only saves work: a damaged one is set aside and filled anew, one that
cannot be written lives in memory. What is done with the facts is decided in `scan.py` and `find.py`.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.files import retire, set_aside
from simpletuner.data.headers import Media, is_lasting
from simpletuner.data.sample import DamagedMedia, MediaInfo, Unfit, UnusableMedia
from simpletuner.data.storage import StoredFile

INDEX_NAME = "index.sqlite"
DAMAGED_SUFFIX = ".damaged"  # what the file is called after it was set aside
APPLICATION = 0x5354_4958  # "STIX" in the file's header: another program's database is not ours to change
SCHEMA = 2
# Raise it when `probe.py` answers otherwise for the same file; every header is then read again.
PROBE_RECIPE = 2
DECODER = "av"  # a newer one may read what this one refuses, so verdicts last no longer than it
LONGEST_TEXT = 1 << 16  # characters of a caption file worth keeping
TEXTS_AT_ONCE = 4096  # per transaction, each of which waits for the disk
BUSY_SECONDS = 60.0  # how long another process may be writing; a batch takes milliseconds

FACTS = (
    "kind", "width", "height", "frame_rate", "num_frames", "duration_seconds", "rotation", "sample_aspect", "codec",
)  # fmt: skip
LATER_FACTS = ("interlaced", "variable_rate", "pixel_format", "audio", "transfer")
FACT_TYPES = (str, int, int, float, int, float, int, float, str, int, int, str, str, str)
COLUMNS = ("path", "size_bytes", "version", "content", "reason", "damaged", *FACTS, *LATER_FACTS)
PLACES = ", ".join("?" * len(COLUMNS))
TABLES = (
    f"CREATE TABLE files ({', '.join(COLUMNS)}, PRIMARY KEY (path)) WITHOUT ROWID",
    "CREATE TABLE texts (path PRIMARY KEY, size_bytes, version, text)",
    "CREATE TABLE facts (path, kind, size_bytes, version, value, PRIMARY KEY (path, kind))",
    "CREATE TABLE meta (name PRIMARY KEY, value)",
)

Answer = TypeVar("Answer")


def index_path(dataset: ClipDataset) -> Path | None:
    """Where the index of a data set lies: beside its encoded clips; None for an entry without such a folder."""
    return Path(dataset.cache_dir_vae) / INDEX_NAME if dataset.cache_dir_vae else None


class FileIndex:
    """The index of one data set. One thread uses it; other processes may have it open too.

    No method fails: what cannot be read counts as not known, what cannot be written is kept in
    memory, and `notes` says so. The file is created by the first thing worth keeping.
    """

    def __init__(self, path: Path | None) -> None:
        """
        Args:
            path: The database file, which need not exist; None keeps everything in memory.
        """
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._texts: dict[str, tuple[int, str, str]] | None = None
        self._kept: list[tuple[str, int, str, str]] = []
        self.notes: list[str] = []

    def __enter__(self) -> FileIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write the texts not yet written, and let go of the file."""
        self.flush()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Headers ----------------------------------------------------------------------------------

    def find_media(self, files: Mapping[str, StoredFile]) -> dict[str, Media]:
        """Path -> what is known of those `files` (by path) whose size and version have not changed."""

        def look(connection: sqlite3.Connection) -> dict[str, Media]:
            found: dict[str, Media] = {}
            for row in connection.execute(f"SELECT {', '.join(COLUMNS)} FROM files"):  # noqa: S608 - own names
                file = files.get(row[0])
                if file is not None and (row[1], row[2]) == (file.size_bytes, file.version):
                    found[file.path] = _media_of(row, file)
            return found

        return self._read(look, {})

    def find_contents(self, paths: Iterable[str]) -> dict[str, tuple[int, str]]:
        """Path -> size and content hash as they were when the file was last read; empty hashes are left out."""
        wanted = set(paths)

        def look(connection: sqlite3.Connection) -> dict[str, tuple[int, str]]:
            rows = connection.execute("SELECT path, size_bytes, content FROM files WHERE content <> ''")
            return {path: (size, content) for path, size, content in rows if path in wanted}

        return self._read(look, {}) if wanted else {}

    def save_media(self, found: Sequence[tuple[StoredFile, Media, str]]) -> None:
        """Keep (file, facts or verdict, content hash or empty); what could not be read this time is not kept."""
        rows = [_row_of(*item) for item in found if is_lasting(item[1])]
        self._write(f"INSERT OR REPLACE INTO files VALUES ({PLACES})", rows)  # noqa: S608

    def renew_media(self, files: Iterable[StoredFile]) -> None:
        """Give known files their new version text: their content was found to be the same."""
        rows = [(file.version, file.path, file.size_bytes) for file in files]
        for table in ("files", "facts"):
            self._write(f"UPDATE {table} SET version = ? WHERE path = ? AND size_bytes = ?", rows)  # noqa: S608

    def note_true_length(self, file: StoredFile, num_frames: int, duration_seconds: float) -> None:
        """Correct the length of a file whose header lied, so that it is planned with the truth from now on.

        Args:
            file: The file as it was decoded; a file changed since then is left alone.
            num_frames: Frames that it holds, at least 1.
            duration_seconds: When the last of them ends.
        """
        row = (num_frames, float(duration_seconds), file.path, file.size_bytes, file.version)
        self._write(
            "UPDATE files SET num_frames = ?, duration_seconds = ? WHERE path = ? AND size_bytes = ? AND version = ?",
            [row],
        )

    def forget_verdicts(self) -> None:
        """Forget why files cannot be used, so that they are read again."""
        self._write("DELETE FROM files WHERE reason IS NOT NULL", [()])

    def forget_missing(self, listed: Collection[str]) -> int:
        """Forget all files, texts and facts whose path is not in `listed`; gives how many files."""

        def look(connection: sqlite3.Connection) -> dict[str, list[str]]:
            return {
                table: [path for (path,) in connection.execute(f"SELECT path FROM {table}") if path not in listed]  # noqa: S608
                for table in ("files", "texts", "facts")
            }

        gone: dict[str, list[str]] = self._read(look, {})
        for table, paths in gone.items():
            self._write(f"DELETE FROM {table} WHERE path = ?", [(path,) for path in set(paths)])  # noqa: S608
        return len(gone.get("files", ()))

    # Texts ------------------------------------------------------------------------------------

    def recall(self, file: StoredFile) -> str | None:
        """The text of a caption file of this path, size and version; None if it is not known.

        All texts are fetched at the first question, and each is let go when it was asked for.
        """
        if self._texts is None:
            texts: dict[str, tuple[int, str, str]] = {}
            self._texts = self._read(_texts_by_path, texts)
        size, version, text = self._texts.pop(file.path, (-1, "", ""))
        return text if (size, version) == (file.size_bytes, file.version) else None

    def keep(self, file: StoredFile, text: str) -> None:
        """Remember the text of a caption file; it is written with others, at the latest by `close`."""
        if len(text) <= LONGEST_TEXT:
            self._kept.append((file.path, file.size_bytes, file.version, text))
        if len(self._kept) >= TEXTS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write the texts not yet written."""
        rows, self._kept = self._kept, []
        self._write("INSERT OR REPLACE INTO texts VALUES (?, ?, ?, ?)", rows)

    # Facts of other parts ---------------------------------------------------------------------

    def read_facts(self, kind: str, files: Mapping[str, StoredFile]) -> dict[str, Any]:
        """Path -> fact of one `kind` about those `files` (by path) whose size and version have not changed.

        Args:
            kind: Which fact, with everything that shapes it ("scenes/adaptive-3.0").
            files: What to look for.
        """

        def look(connection: sqlite3.Connection) -> dict[str, Any]:
            found: dict[str, Any] = {}
            rows = connection.execute("SELECT path, size_bytes, version, value FROM facts WHERE kind = ?", (kind,))
            for path, size, version, value in rows:
                file = files.get(path)
                if file is not None and (size, version) == (file.size_bytes, file.version):
                    found[file.path] = json.loads(value)
            return found

        return self._read(look, {}) if files else {}

    def write_facts(self, kind: str, facts: Sequence[tuple[StoredFile, Any]]) -> None:
        """Keep (file, fact) of one `kind`; a fact is anything JSON can hold."""
        rows = [
            (file.path, kind, file.size_bytes, file.version, json.dumps(value, separators=(",", ":")))
            for file, value in facts
        ]
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", rows)

    # The database -----------------------------------------------------------------------------

    def _read(self, look: Callable[[sqlite3.Connection], Answer], nothing: Answer) -> Answer:
        if self._connection is None and (self._path is None or not self._path.exists()):
            return nothing
        return self._try_twice(look)

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        def change(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany(statement, rows)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

        if rows:
            self._try_twice(change)

    def _try_twice(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Do `work`; on trouble with the file mend it, or go on in memory, and do it once more."""
        try:
            return work(self._open())
        except (sqlite3.Error, OSError, ValueError, Timeout) as error:
            self._recover(error)
        try:
            return work(self._open())
        except (sqlite3.Error, OSError, ValueError, Timeout) as error:
            self._go_on_in_memory(error)
        return work(self._open())

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _connect(self._path)
            _prepare(self._connection)
        return self._connection

    def _recover(self, error: Exception) -> None:
        self._disconnect()
        if self._path is None or not _is_damage(error):
            self._go_on_in_memory(error)
            return
        # Of two processes that find the damage, the second one finds the first one's new file here.
        with FileLock(f"{self._path}.lock", timeout=BUSY_SECONDS):
            if _is_sound(self._path):
                return
            aside = set_aside(self._path, self._path.name + DAMAGED_SUFFIX)
            for suffix in ("-journal", "-wal", "-shm"):  # they would be played back into the new file
                with contextlib.suppress(FileNotFoundError):
                    retire(Path(f"{self._path}{suffix}"))
        self.notes.append(
            f"the index of headers was damaged or not ours ({error}); it is now '{aside}', and headers are read again"
        )

    def _go_on_in_memory(self, error: Exception) -> None:
        self._disconnect()
        self.notes.append(
            f"the index '{self._path}' cannot be used ({error}); headers are read again at the next start"
        )
        self._path = None


def open_index(dataset: ClipDataset) -> FileIndex:
    """The index of a data set, to be used in a `with` statement; nothing is read or created yet."""
    return FileIndex(index_path(dataset))


def _connect(path: Path | None) -> sqlite3.Connection:
    # A rollback journal, unlike a write-ahead log, also works on network disks and in folders that only allow reading.
    return sqlite3.connect(path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None)


def _prepare(connection: sqlite3.Connection) -> None:
    """Create the tables, and drop what an older program knew.

    Raises:
        ValueError: If the database is another program's, or a newer one's.
    """
    decoder = installed_version(DECODER)
    if _is_current(connection, decoder):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == APPLICATION and _schema(connection) < SCHEMA:
            for table in ("files", "texts", "facts", "meta"):
                connection.execute(f"DROP TABLE IF EXISTS {table}")
            tables = 0
        if tables == 0:
            for statement in TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
        elif application != APPLICATION or _schema(connection) != SCHEMA:
            raise ValueError(f"application {application:#x}, schema {_schema(connection)}")
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        if meta.get("recipe") != PROBE_RECIPE:
            connection.execute("DELETE FROM files")
        elif meta.get("decoder") != decoder:
            connection.execute("DELETE FROM files WHERE reason IS NOT NULL")
        connection.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", [("recipe", PROBE_RECIPE), ("decoder", decoder)]
        )
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _is_current(connection: sqlite3.Connection, decoder: str) -> bool:
    """Whether nothing need be written before use, so that an index in a closed folder can be read."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION or _schema(connection) != SCHEMA:
        return False
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    return meta == {"recipe": PROBE_RECIPE, "decoder": decoder}


def _schema(connection: sqlite3.Connection) -> int:
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    return int(schema)


def _is_damage(error: Exception) -> bool:
    """Whether the content of the file is at fault, not the disk, its lock or our rights."""
    if isinstance(error, sqlite3.OperationalError):  # full, locked, closed; or tables and texts that are not ours
        return str(error).startswith(("no such", "Could not decode"))
    return isinstance(error, (sqlite3.DatabaseError, ValueError))


def _is_sound(path: Path) -> bool:
    try:
        with contextlib.closing(_connect(path)) as connection:
            _prepare(connection)
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except (sqlite3.Error, ValueError):
        return False


# Rows -------------------------------------------------------------------------------------------


def _texts_by_path(connection: sqlite3.Connection) -> dict[str, tuple[int, str, str]]:
    return {path: (size, version, text) for path, size, version, text in connection.execute("SELECT * FROM texts")}


def _row_of(file: StoredFile, media: Media, content: str) -> tuple[Any, ...]:
    name = (file.path, file.size_bytes, file.version, content)
    if isinstance(media, Unfit):
        return (*name, media.reason, isinstance(media, DamagedMedia), *[None] * len((*FACTS, *LATER_FACTS)))
    return (
        *name, None, False, media.kind, media.width, media.height, media.frame_rate, media.num_frames,
        media.duration_seconds, media.rotation, media.sample_aspect, media.codec, media.interlaced,
        media.variable_rate, media.pixel_format, media.audio, media.transfer,
    )  # fmt: skip


def _media_of(row: tuple[Any, ...], file: StoredFile) -> Media:
    reason, damaged = row[4], row[5]
    if reason is not None:
        return DamagedMedia(reason) if damaged else UnusableMedia(reason)
    if tuple(map(type, row[6:])) != FACT_TYPES:
        raise ValueError(f"facts of another kind: {row[6:]}")
    kind, width, height, rate, frames, seconds, rotation, aspect, codec, *later = row[6:]
    interlaced, variable, pixels, audio, transfer = later
    return MediaInfo(
        kind, width, height, rate, frames, seconds, rotation, aspect, sys.intern(codec), file.size_bytes, file.version,
        bool(interlaced), bool(variable), sys.intern(pixels), sys.intern(audio),
        sys.intern(transfer),
    )  # fmt: skip
