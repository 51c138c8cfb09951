"""Tables of captions and sizes: .csv, .tsv, .jsonl and .parquet files, and the rows that they give.

A table only says things about files; it never decides which are trained. A number that cannot be
read counts as not given, so that the file's own header is asked. Knows nothing of clips.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import UserError
from simpletuner.data.backends.packages import need_package
from simpletuner.data.storage import FactTable, Storage, TableRow

logger = logging.getLogger(__name__)

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
LARGEST_FIELD_CHARACTERS = 1 << 24
ROWS_AT_ONCE = 4096
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Which columns of a table mean what.

    Attributes:
        captions: Columns of captions; each gives one, or several if it holds a list.
        fallbacks: Columns asked in turn while there is no caption.
        width: Column of widths in pixels.
        height: Column of heights in pixels.
        num_frames: Column of frame counts.
        fps: Column of frame rates.
    """

    captions: tuple[str, ...]
    fallbacks: tuple[str, ...] = ()
    width: str | None = None
    height: str | None = None
    num_frames: str | None = None
    fps: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        numbers = (self.width, self.height, self.num_frames, self.fps)
        return (*self.captions, *self.fallbacks, *(name for name in numbers if name))

    def keep(self, available: Iterable[str]) -> Columns:
        """Those among `available`; the others say nothing."""
        there = frozenset(available)

        def number(name: str | None) -> str | None:
            return name if name in there else None

        return Columns(
            tuple(name for name in self.captions if name in there),
            tuple(name for name in self.fallbacks if name in there),
            number(self.width),
            number(self.height),
            number(self.num_frames),
            number(self.fps),
        )


@dataclass(frozen=True)
class Table:
    """An open table.

    Attributes:
        columns: Names of its columns.
        records: Its rows, each by column name; may be gone through once.
    """

    columns: tuple[str, ...]
    records: Iterator[Record]


def read_columns(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """One column or several, as an option gives them."""
    return () if not value else (value,) if isinstance(value, str) else tuple(value)


# Rows ---------------------------------------------------------------------------------------------


def row_of(record: Record, columns: Columns) -> TableRow:
    """What `record` says; a cell that is empty or unreadable says nothing."""
    captions = tuple(text for name in columns.captions for text in _texts(record.get(name)))
    for name in columns.fallbacks:
        captions = captions or tuple(_texts(record.get(name)))
    fps = _number(record.get(columns.fps)) if columns.fps else None
    return TableRow(
        captions,
        _count(record.get(columns.width)) if columns.width else None,
        _count(record.get(columns.height)) if columns.height else None,
        _count(record.get(columns.num_frames)) if columns.num_frames else None,
        fps,
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    elif value is not None and not (isinstance(value, float) and math.isnan(value)) and str(value).strip():
        yield str(value).strip()


def _number(value: Any) -> float | None:
    if isinstance(value, str) and value.count("/") == 1:  # "30000/1001"
        above, below = (_number(part) for part in value.split("/"))
        return above / below if above and below else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number >= 1 else None


# Reading ------------------------------------------------------------------------------------------


def read_table(
    open_file: Callable[[], AbstractContextManager[BinaryIO]], name: str, owner: str, columns: Sequence[str] = ()
) -> Table:
    """Open the table called `name`.

    Args:
        open_file: Opens its bytes.
        name: Its file name, whose ending gives the format.
        owner: Who wants it, for messages ("data set 'clips'").
        columns: Columns that are needed; only these are read from a parquet file, all if none is given.
    Raises:
        UserError: If it cannot be read, is no table, or its package is not installed. Also while going through the
            rows.
    """
    ending = PurePosixPath(name).suffix.lower()
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if ending not in readers:
        raise UserError(
            f"{owner}: '{name}' is not a table that can be read",
            f"Tables end in {', '.join(TABLE_ENDINGS)}",
            "Convert it, or correct the name",
        )
    rows = _told(readers[ending](open_file, name, owner, columns), name, owner)
    header = cast("tuple[str, ...]", next(rows))
    return Table(header, cast("Iterator[Record]", rows))


def need_columns(table: Table, wanted: Iterable[str], name: str, owner: str, option: str) -> None:
    """Refuse a table that lacks a column that the entry names.

    Raises:
        UserError: With the nearest name and all columns of the table.
    """
    for column in wanted:
        if column not in table.columns:
            near = did_you_mean(column, list(table.columns))
            raise UserError(
                f"{owner}: '{name}' has no column '{column}'",
                f"It has: {', '.join(table.columns)}",
                near or f"Correct {option}",
            )


def _told(rows: Iterator[Any], name: str, owner: str) -> Iterator[Any]:
    """Faults of reading, as `UserError`s that name the table."""
    try:
        yield from rows
    except FileNotFoundError as error:
        raise UserError(f"{owner}: the table '{name}' does not exist", "", "Correct its path") from error
    except OSError as error:
        raise UserError(f"{owner}: the table '{name}' cannot be read ({error.strerror or error})", "",
                        "Correct its path or its permissions") from error  # fmt: skip
    except UnicodeDecodeError as error:
        raise UserError(f"{owner}: the table '{name}' is not UTF-8 at byte {error.start}", "Text must be UTF-8",
                        "Save it as UTF-8") from error  # fmt: skip
    except (csv.Error, ValueError) as error:  # pyarrow's errors of format are ValueErrors too
        raise UserError(f"{owner}: the table '{name}' is damaged ({error})", "", "Write it again") from error


def _read_csv(
    open_file: Callable[[], AbstractContextManager[BinaryIO]], name: str, owner: str, columns: Sequence[str]
) -> Iterator[Any]:
    csv.field_size_limit(LARGEST_FIELD_CHARACTERS)
    with open_file() as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        first = text.readline()
        text.seek(0)
        delimiter = max("\t" if name.lower().endswith(".tsv") else ",", ";", "\t", key=first.count)
        reader = csv.DictReader(text, delimiter=delimiter, restkey="", skipinitialspace=True)
        yield tuple(str(column).strip() for column in reader.fieldnames or ())
        for record in reader:
            yield {str(key).strip(): value for key, value in record.items()}


def _read_jsonl(
    open_file: Callable[[], AbstractContextManager[BinaryIO]], name: str, owner: str, columns: Sequence[str]
) -> Iterator[Any]:
    records: list[Record] = []
    header: dict[str, None] = {}
    with open_file() as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON") from error
                if not isinstance(record, dict):
                    raise ValueError(f"line {number} is not a JSON object")
                header.update(dict.fromkeys(record))
                records.append(record)
    yield tuple(header)
    yield from records


def _read_parquet(
    open_file: Callable[[], AbstractContextManager[BinaryIO]], name: str, owner: str, columns: Sequence[str]
) -> Iterator[Any]:
    parquet = need_package("pyarrow.parquet", "tables", f"the table '{name}' of {owner}")
    with open_file() as raw:
        file = parquet.ParquetFile(raw)
        header = tuple(str(column) for column in file.schema_arrow.names)
        yield header
        wanted = [column for column in header if column in columns] if columns else None
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
            yield from batch.to_pylist()


# The `parquet` block ------------------------------------------------------------------------------


class RowTable:
    """Rows by file name; fulfils `FactTable`."""

    def __init__(self, place: str, rows: Mapping[str, TableRow], *, with_endings: bool = True) -> None:
        """
        Args:
            place: The table in words.
            rows: Rows by path below the root; by bare file name where the table gives no folders.
            with_endings: Whether names carry their endings; if not, they match with and without.
        """
        self._place = place
        self._rows = rows
        self._with_endings = with_endings
        self._has_folders = any("/" in name for name in rows)

    @property
    def place(self) -> str:
        return self._place

    def facts(self, path: str) -> TableRow | None:
        for candidate in (path,) if self._has_folders else (path, PurePosixPath(path).name):
            if candidate in self._rows:
                return self._rows[candidate]
            bare = str(PurePosixPath(candidate).with_suffix(""))
            if not self._with_endings and bare in self._rows:
                return self._rows[bare]
        return None


def open_table(dataset: ClipDataset, storage: Storage) -> FactTable:
    """The table that the `parquet` block of an entry names: of this machine, or inside the data set's place.

    Raises:
        UserError: If it is missing, damaged, or lacks a column that the entry names.
    """
    block, owner = dataset.parquet, f"data set '{dataset.id}'"
    if block.path is None:
        raise UserError(f"{owner}: parquet.path is missing", "It names the table", 'Add "parquet": {"path": …}')
    path = block.path
    local = Path(path).expanduser()
    columns = Columns(
        read_columns(block.caption_column), read_columns(block.fallback_caption_column),
        block.width_column, block.height_column, block.num_frames_column, block.fps_column,
    )  # fmt: skip
    wanted = (block.filename_column, *columns.names)

    def open_file() -> AbstractContextManager[BinaryIO]:
        return local.open("rb") if local.is_file() else storage.open(path)

    table = read_table(open_file, path, owner, wanted)
    # A table of sizes alone needs no caption column, unless the entry asks for captions from it.
    if dataset.caption_strategy != "parquet":
        columns = Columns(
            tuple(name for name in columns.captions if name in table.columns), columns.fallbacks,
            columns.width, columns.height, columns.num_frames, columns.fps,
        )  # fmt: skip
    need_columns(table, (block.filename_column, *columns.names), path, owner, "the columns of the `parquet` block")
    rows: dict[str, TableRow] = {}
    named = 0
    for record in table.records:
        name = normal_name(record.get(block.filename_column))
        if name:
            named += 1
            rows[name] = row_of(record, columns)
    if named > len(rows):
        logger.warning("%s: %d rows of '%s' repeat a file name; the last one of each counts",
                       owner, named - len(rows), path)  # fmt: skip
    return RowTable(f"table '{path}'", rows, with_endings=block.identifier_includes_extension)


def normal_name(value: Any) -> str:
    """A cell that names a file, as a path below the root: forward slashes, no leading "./"."""
    text = "" if value is None else str(value).strip().replace("\\", "/")
    while text.startswith("./"):
        text = text[2:]
    return text
