"""Data sets of the Hugging Face Hub that keep their clips in the rows of tables.

Without `streaming` the `datasets` library fetches and opens the tables, whatever their format; with
it, parquet tables are read in ranges, one group of rows at a time, and nothing is kept. Each row is
a file called by its number. Clips stay bytes: nothing is decoded here.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import UserError
from simpletuner.core.files import write_json_atomic
from simpletuner.data.backends.hub_files import HubFiles, columns_of_hub
from simpletuner.data.backends.packages import need_package
from simpletuner.data.backends.patience import MissingError
from simpletuner.data.backends.tables import Record, row_of
from simpletuner.data.sample import Unfit
from simpletuner.data.storage import Listing, Storage, StoredFile, TableRow

ENDINGS = {"video": ".mp4", "image": ".jpg"}
UNTOLD = -1


def media_column(dataset: ClipDataset) -> str:
    """The column that holds the clips (or pictures) of an entry."""
    return dataset.video_column if dataset.unnamed_kind == "video" else dataset.image_column


class RowSource(Protocol):
    """The rows of one split, by number."""

    def files(self) -> Sequence[tuple[int, str]]:
        """Size and version of each row's clip; the size is -1 if only reading tells it."""

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        """The cells of `columns` of each row."""

    def read(self, number: int) -> bytes | str:
        """The clip of a row: its bytes, or the path at which it lies.

        Raises:
            MissingError: If the row holds none.
        """

    @property
    def columns(self) -> Sequence[str]:
        """Names of all columns."""


class HubRows:
    """Rows as files called "<number>.mp4" or "<number>.jpg"; fulfils `Storage` and `FactTable`."""

    def __init__(self, dataset: ClipDataset, files: Storage) -> None:
        """
        Args:
            dataset: Entry of type `huggingface`.
            files: The repository, or the folder, as files.
        """
        self._dataset = dataset
        self._repository = files
        self._ending = ENDINGS[dataset.unnamed_kind]

    @property
    def place(self) -> str:
        return f"{self._repository.place}, split '{self._dataset.split}', column '{media_column(self._dataset)}'"

    def list_files(self) -> Listing:
        files = (StoredFile(f"{number}{self._ending}", *file) for number, file in enumerate(self._files))
        return Listing(tuple(sorted(files, key=lambda file: file.path)))

    def stat(self, path: str) -> StoredFile:
        number = self._number(path)
        if number is None:
            raise Unfit(f"cannot be reached ({self.place} has {len(self._files)} rows)")
        size, version = self._files[number]
        if size == UNTOLD:
            try:
                size = self._size(self._rows.read(number))
            except OSError as error:
                raise Unfit(f"cannot be reached ({error.strerror or error})") from error
        return StoredFile(path, size, version)

    def open(self, path: str) -> BinaryIO:
        number = self._number(path)
        if number is None:
            raise MissingError(f"{self.place} has {len(self._files)} rows")
        content = self._rows.read(number)
        if isinstance(content, bytes):
            return io.BytesIO(content)
        return Path(content).open("rb") if Path(content).is_absolute() else self._repository.open(content)

    def local_path(self, path: str) -> Path | None:
        return None

    def facts(self, path: str) -> TableRow | None:
        number = self._number(path)
        return None if number is None else self._facts[number]

    @cached_property
    def _rows(self) -> RowSource:
        source = _ShardRows if self._dataset.streaming else _LoadedRows
        return source(self._dataset, self._repository)

    @cached_property
    def _files(self) -> Sequence[tuple[int, str]]:
        return self._rows.files()

    @cached_property
    def _facts(self) -> Sequence[TableRow]:
        columns = columns_of_hub(self._dataset)
        if self._dataset.caption_strategy == "huggingface" and not columns.keep(self._rows.columns).captions:
            wanted = next(iter(columns.captions), "")
            raise UserError(
                f"data set '{self._dataset.id}': {self.place} has no column '{wanted}' for captions",
                f"Its columns: {', '.join(self._rows.columns)}",
                did_you_mean(wanted, list(self._rows.columns)) or "Set huggingface.caption_column to one of them",
            )
        columns = columns.keep(self._rows.columns)
        return [row_of(record, columns) for record in self._rows.records(columns.names)]

    def _number(self, path: str) -> int | None:
        name = path.removesuffix(self._ending)
        found = int(name) if name != path and name.isascii() and name.isdigit() else -1
        return found if 0 <= found < len(self._files) and str(found) == name else None

    def _size(self, content: bytes | str) -> int:
        if isinstance(content, bytes):
            return len(content)
        return (
            Path(content).stat().st_size if Path(content).is_absolute() else self._repository.stat(content).size_bytes
        )


def holds_media(dataset: ClipDataset, files: Storage, tables: Sequence[str]) -> bool:
    """Whether the tables beside clips hold clips themselves: bytes in the column that the entry names."""
    column = media_column(dataset)
    for table in tables:
        if table.endswith(".parquet"):
            parquet, types = _parquet(dataset), need_package("pyarrow.types", "hub", "the Hub")
            with files.open(table) as handle:
                schema = parquet.ParquetFile(handle).schema_arrow
            if column not in schema.names:
                return False
            kind = schema.field(column).type
            return bool(types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind))
    return False


def _parquet(dataset: ClipDataset) -> Any:
    return need_package("pyarrow.parquet", "hub", f"data set '{dataset.id}' (rows of a table)")


def _datasets(dataset: ClipDataset) -> Any:
    library = need_package("datasets", "hub", f"data set '{dataset.id}' (rows of a table)")
    library.disable_progress_bars()
    return library


def _clip_of(cell: Any) -> bytes | str:
    """What a cell holds: bytes, a path, or both in an object of `bytes` and `path`."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if not isinstance(cell, (bytes, str)) or not cell:
        raise MissingError("the row holds no clip")
    return cell


def _need_column(dataset: ClipDataset, columns: Sequence[str], place: str) -> str:
    column = media_column(dataset)
    if column not in columns:
        raise UserError(
            f"data set '{dataset.id}': {place} has no column '{column}'",
            f"Its columns: {', '.join(columns)}",
            did_you_mean(column, list(columns)) or f"Set {dataset.unnamed_kind}_column to the one that holds the clips",
        )
    return column


def _source(dataset: ClipDataset, files: Storage) -> dict[str, Any]:
    """How the `datasets` library finds what the entry names."""
    return {
        "path": files.name if isinstance(files, HubFiles) else files.place,
        "name": dataset.dataset_config,
        "revision": files.commit if isinstance(files, HubFiles) else None,
        "cache_dir": str(Path(dataset.cache_dir).expanduser()) if dataset.cache_dir else None,
    }


def _loading(dataset: ClipDataset, place: str, action: Any) -> Any:
    """Call the `datasets` library; its many ways to fail come out as `UserError`s."""
    errors = need_package("datasets.exceptions", "hub", "the Hub")
    try:
        return action()
    except (OSError, ValueError, RuntimeError, errors.DatasetsError) as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(
            f"data set '{dataset.id}': the rows of {place} cannot be loaded: {first_line}",
            "The `datasets` library must be able to read it",
            "Correct dataset_name, dataset_config, split or revision",
        ) from error


# Downloaded whole ---------------------------------------------------------------------------------


class _LoadedRows:
    """Rows that the `datasets` library has put into files of this machine."""

    def __init__(self, dataset: ClipDataset, files: Storage) -> None:
        self._version = _digest(f"{file.path} {file.size_bytes} {file.version}" for file in files.list_files().files)
        library = _datasets(dataset)
        rows = _loading(
            dataset, files.place, lambda: library.load_dataset(split=dataset.split, **_source(dataset, files))
        )
        self._column = _need_column(dataset, rows.column_names, files.place)
        for kind in (library.Video, library.Image):
            if isinstance(rows.features[self._column], kind):
                rows = rows.cast_column(self._column, kind(decode=False))
        self._rows = rows
        self._clips = rows.select_columns([self._column])

    @property
    def columns(self) -> Sequence[str]:
        return tuple(self._rows.column_names)

    def files(self) -> Sequence[tuple[int, str]]:
        return [(size, f"{self._version}:{number}") for number, size in enumerate(self._sizes())]

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        if not columns:
            return iter([{}] * len(self._rows))
        return iter(self._rows.select_columns(list(columns)).to_list())

    def read(self, number: int) -> bytes | str:
        return _clip_of(self._clips[number][self._column])

    def _sizes(self) -> Iterator[int]:
        """Lengths from the table's offsets; no clip is read."""
        compute = need_package("pyarrow.compute", "hub", "the Hub")
        types = need_package("pyarrow.types", "hub", "the Hub")
        for chunk in self._rows.data.column(self._column).chunks:
            if types.is_struct(chunk.type) and chunk.type.get_field_index("bytes") >= 0:
                chunk = compute.struct_field(chunk, "bytes")
            if types.is_binary(chunk.type) or types.is_large_binary(chunk.type):
                yield from (UNTOLD if size is None else size for size in compute.binary_length(chunk).to_pylist())
            else:
                yield from [UNTOLD] * len(chunk)


# Read in ranges -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """A group of rows of one parquet table.

    Attributes:
        shard: Path of the table in the repository.
        version: Version of the table.
        number: Which of its groups.
        first: Number of its first row in the data set.
        count: Rows.
    """

    shard: str
    version: str
    number: int
    first: int
    count: int


class _ShardRows:
    """Rows of parquet tables that stay where they are."""

    def __init__(self, dataset: ClipDataset, files: Storage) -> None:
        self._dataset = dataset
        self._repository = files
        self._parquet = _parquet(dataset)
        self._shards = self._find_shards()
        self._columns: Sequence[str] = ()
        self._groups = list(self._find_groups())
        self._lock = Lock()
        self._kept: tuple[_Group, list[Any]] | None = None
        self._sizes_folder = Path(str(dataset.cache_dir_vae)) / "row_sizes" if dataset.cache_dir_vae else None

    @property
    def columns(self) -> Sequence[str]:
        return self._columns

    def files(self) -> Sequence[tuple[int, str]]:
        return [
            (size, f"{group.version[:16]}:{group.number}:{number}")
            for group in self._groups
            for number, size in enumerate(self._known_sizes(group))
        ]

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        for shard in self._shards:
            with self._repository.open(shard) as handle:
                file = self._parquet.ParquetFile(handle)
                if columns:
                    yield from file.read(columns=list(columns)).to_pylist()
                else:
                    yield from [{}] * file.metadata.num_rows

    def read(self, number: int) -> bytes | str:
        group = next(group for group in self._groups if group.first <= number < group.first + group.count)
        with self._lock:  # neighbours are asked for at the same time, and lie in one group
            if self._kept is None or self._kept[0] != group:
                self._kept = (group, self._read_group(group))
            cell = self._kept[1][number - group.first]
        return _clip_of(cell)

    def _find_shards(self) -> list[str]:
        library = _datasets(self._dataset)
        source = _source(self._dataset, self._repository)
        place = self._repository.place
        builder = _loading(self._dataset, place, lambda: library.load_dataset_builder(**source))
        files = builder.config.data_files or {}
        if self._dataset.split not in files:
            raise UserError(
                f"data set '{self._dataset.id}': {place} has no split '{self._dataset.split}'",
                f"Its splits: {', '.join(map(str, files)) or 'none'}", "Correct split",
            )  # fmt: skip
        paths = {file.path for file in self._repository.list_files().files}
        shards = [_inside(str(name), paths) for name in files[self._dataset.split]]
        if not all(shard and shard.endswith(".parquet") for shard in shards):
            raise UserError(
                f"data set '{self._dataset.id}': {place} is not made of parquet tables",
                "Only these can be read in ranges", 'Set "streaming": false',
            )  # fmt: skip
        return [shard for shard in shards if shard]

    def _find_groups(self) -> Iterator[_Group]:
        first = 0
        for shard in self._shards:
            version = _digest([self._repository.stat(shard).version])
            with self._repository.open(shard) as handle:
                file = self._parquet.ParquetFile(handle)
                self._columns = tuple(file.schema_arrow.names)
                _need_column(self._dataset, self._columns, self._repository.place)
                for number in range(file.metadata.num_row_groups):
                    count = file.metadata.row_group(number).num_rows
                    yield _Group(shard, version, number, first, count)
                    first += count

    def _read_group(self, group: _Group) -> list[Any]:
        column = media_column(self._dataset)
        with self._repository.open(group.shard) as handle:
            table = self._parquet.ParquetFile(handle).read_row_group(group.number, columns=[column])
        cells: list[Any] = table.column(column).to_pylist()
        path = self._sizes_path(group)
        if path is not None and not path.exists():
            write_json_atomic(path, [_size_of(cell) for cell in cells])
        return cells

    def _known_sizes(self, group: _Group) -> list[int]:
        """Sizes noted when the group was last read: no header tells them, and asking anew would read every clip."""
        path = self._sizes_path(group)
        if path is not None and path.exists():
            try:
                sizes = json.loads(path.read_bytes())
            except ValueError:
                sizes = []
            if isinstance(sizes, list) and len(sizes) == group.count:
                return sizes
        return [UNTOLD] * group.count

    def _sizes_path(self, group: _Group) -> Path | None:
        return self._sizes_folder / f"{group.version}-{group.number}.json" if self._sizes_folder else None


def _size_of(cell: Any) -> int:
    try:
        content = _clip_of(cell)
    except MissingError:
        return UNTOLD
    return len(content) if isinstance(content, bytes) else UNTOLD


def _inside(name: str, paths: set[str]) -> str:
    """The path in the repository of a file that the `datasets` library names in full; empty if there is none."""
    parts = name.replace("\\", "/").split("/")
    return next((path for path in ("/".join(parts[begin:]) for begin in range(len(parts))) if path in paths), "")


def _digest(texts: Any) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(str(text).encode() + b"\n")
    return digest.hexdigest()[:16]
