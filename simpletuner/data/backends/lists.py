"""Data sets given by a list: a table whose rows name files of this machine, of the web, or of object stores.

Files of the web are fetched when they are first opened and kept (`downloads.py`); those of an object
store are read in ranges. The list's other columns are the data set's table of captions and sizes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.backends.downloads import Downloads, WebFile
from simpletuner.data.backends.object_store import S3Client, version_of
from simpletuner.data.backends.patience import MissingError, Patience, UnreachableError
from simpletuner.data.backends.tables import Columns, need_columns, normal_name, read_columns, read_table, row_of
from simpletuner.data.listing import EXTENSIONS, UNFINISHED_EXTENSIONS
from simpletuner.data.sample import Unfit
from simpletuner.data.storage import FactTable, Listing, LocalStorage, Storage, StoredFile, TableRow

logger = logging.getLogger(__name__)

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
WEB = ("http", "https")
ENDINGS = {"video": ".mp4", "image": ".jpg"}  # of what has none; content decides, not the ending
KNOWN_ENDINGS = frozenset().union(*EXTENSIONS.values(), UNFINISHED_EXTENSIONS)
UNSAFE_IN_NAMES = re.compile(r"[^\w./ ()+=,@-]")


@dataclass(frozen=True)
class ListedFile:
    """One row of a list.

    Attributes:
        source: Path or URL as it is written; URLs may hold secrets.
        scheme: "http", "https", "s3", empty for a path of this machine, or one that cannot be read.
        row: What the other columns say.
    """

    source: str
    scheme: str
    row: TableRow


@dataclass(frozen=True)
class _ReadList:
    files: Mapping[str, ListedFile]
    passed_over: Mapping[str, int]


class ListStorage:
    """The files that a list names; fulfils `Storage` and `FactTable`."""

    def __init__(self, dataset: ClipDataset, patience: Patience = Patience()) -> None:  # noqa: B008 - frozen
        self._dataset = dataset
        self._patience = patience
        self._list_path = Path(str(dataset.csv_file)).expanduser()
        root = Path(dataset.instance_data_dir).expanduser() if dataset.instance_data_dir else self._list_path.parent
        self._local = LocalStorage(root, dataset.id)
        kept = dataset.csv_cache_dir or Path(str(dataset.cache_dir_vae)) / "downloads"
        self._downloads = Downloads(Path(kept).expanduser(), patience)

    @property
    def place(self) -> str:
        return str(self._list_path)

    def list_files(self) -> Listing:
        """Sizes and versions of files of the web are only known here once they are fetched."""
        found = self._read
        files = tuple(self._listed(path, found.files[path]) for path in sorted(found.files))
        return Listing(files, passed_over=dict(found.passed_over))

    def stat(self, path: str) -> StoredFile:
        file = self._file(path)
        try:
            if file.scheme in WEB:
                facts = self._downloads.look(file.source)
                return StoredFile(path, facts.size_bytes, facts.version)
            if file.scheme == "s3":
                described = self._s3.describe(_key_of(file.source))
                return StoredFile(path, int(described["size"]), version_of(described))
        except UnreachableError as error:
            raise Unfit(f"cannot be reached ({error.reason})") from error
        if file.scheme:
            raise Unfit(f"cannot be reached ('{file.scheme}://' is not supported: use a path, http, https or s3)")
        try:
            known = self._local.stat(file.source)
        except Unfit as unfit:
            if Path(file.source).is_absolute():
                raise
            raise Unfit(f"{unfit.reason}; paths of the list start at '{self._local.place}'") from unfit
        return StoredFile(path, known.size_bytes, known.version)

    def open(self, path: str) -> BinaryIO:
        file = self._file(path)
        if file.scheme in WEB:
            return self._downloads.fetch(file.source).open("rb")
        if file.scheme == "s3":
            return self._s3.open(_key_of(file.source))
        if file.scheme:
            raise UnreachableError(f"'{file.scheme}://' is not supported")
        return self._local.open(file.source)

    def local_path(self, path: str) -> Path | None:
        file = self._file(path)
        if not file.scheme:
            return self._local.local_path(file.source)
        kept = self._kept(file)
        return kept[0] if kept else None

    def facts(self, path: str) -> TableRow | None:
        file = self._read.files.get(path)
        return file.row if file else None

    @cached_property
    def _read(self) -> _ReadList:
        return read_list(self._dataset, self._list_path)

    @cached_property
    def _s3(self) -> S3Client:
        return S3Client(self._dataset, self._patience)

    def _file(self, path: str) -> ListedFile:
        """The row called `path`; a file that is not listed (the text beside a clip) lies where its clip does."""
        file = self._read.files.get(path)
        if file is not None:
            return file
        stem = str(PurePosixPath(path).with_suffix(""))
        beside = self._neighbours.get(stem)
        if beside is not None and not beside.scheme:
            return ListedFile(str(PurePosixPath(beside.source).with_suffix(PurePosixPath(path).suffix)), "", TableRow())
        raise MissingError("the list does not name it")

    @cached_property
    def _neighbours(self) -> Mapping[str, ListedFile]:
        return {str(PurePosixPath(path).with_suffix("")): file for path, file in self._read.files.items()}

    def _listed(self, path: str, file: ListedFile) -> StoredFile:
        if not file.scheme:
            try:
                known = self._local.stat(file.source)
            except Unfit:  # whoever opens it is told the reason
                return StoredFile(path, -1, "")
            return StoredFile(path, known.size_bytes, known.version)
        kept = self._kept(file)
        return StoredFile(path, kept[1].size_bytes, kept[1].version) if kept else StoredFile(path, -1, "")

    def _kept(self, file: ListedFile) -> tuple[Path, WebFile] | None:
        if file.scheme in WEB:
            with contextlib.suppress(UnreachableError):  # whoever opens it is told that it is no URL
                return self._downloads.kept(file.source)
        return None


def open_list(dataset: ClipDataset) -> Storage:
    """The storage of an entry of type `csv`."""
    return ListStorage(dataset)


def facts_of_list(dataset: ClipDataset, storage: Storage) -> FactTable:
    """The table of captions and sizes of an entry of type `csv`: the list itself."""
    assert isinstance(storage, ListStorage), "type csv is opened as a list"
    return storage


def read_list(dataset: ClipDataset, path: Path) -> _ReadList:
    """The files that the list at `path` names, by their names in the data set; of equal rows the last one counts.

    Raises:
        UserError: If it is missing, damaged, or lacks a column that the entry names.
    """
    owner, name = f"data set '{dataset.id}'", str(path)
    columns = Columns(
        read_columns(dataset.csv_caption_column), (),
        dataset.csv_width_column, dataset.csv_height_column, dataset.csv_num_frames_column, dataset.csv_fps_column,
    )  # fmt: skip
    table = read_table(lambda: path.open("rb"), name, owner, (dataset.csv_url_column, *columns.names))
    need_columns(table, [dataset.csv_url_column], name, owner, "csv_url_column")
    if dataset.caption_strategy == "csv":
        need_columns(table, columns.captions, name, owner, "csv_caption_column")
    columns = columns.keep(table.columns)
    rows: dict[str, TableRow] = {}
    passed_over: Counter[str] = Counter()
    for record in table.records:
        source = str(record.get(dataset.csv_url_column) or "").strip()
        if source.lower().startswith("file://"):
            source = unquote(urlsplit(source).path)
        if not source:
            passed_over["rows without a path"] += 1
            continue
        if source in rows:
            passed_over["rows that a later one replaces"] += 1
        rows[source] = row_of(record, columns)
    if not rows:
        raise UserError(f"{owner}: the list '{name}' names no files", f"Column '{dataset.csv_url_column}' is empty",
                        "Correct csv_file or csv_url_column")  # fmt: skip
    return _ReadList(_named(rows, dataset), dict(passed_over))


def _named(rows: Mapping[str, TableRow], dataset: ClipDataset) -> dict[str, ListedFile]:
    """Rows by unique readable names that hold no secret and do not depend on the order of the list."""
    names = {source: _name_of(source, ENDINGS[dataset.unnamed_kind]) for source in rows}
    uses = Counter(names.values())
    files: dict[str, ListedFile] = {}
    for source, row in rows.items():
        name, scheme = names[source], _scheme_of(source)
        if uses[name] > 1 or (scheme and "?" in source):
            digest = hashlib.sha256(source.encode()).hexdigest()[:12]
            path = PurePosixPath(name)
            name = str(path.with_name(f"{path.stem}-{digest}{path.suffix}"))
        files[name] = ListedFile(source, scheme, row)
    return files


def _scheme_of(source: str) -> str:
    found = SCHEME.match(source)
    return found[1].lower() if found else ""


def _name_of(source: str, ending: str) -> str:
    """A path for reports: host and path of a URL, or the path as written without its leading slash."""
    if not _scheme_of(source):
        return normal_name(source).lstrip("/")
    try:
        parts = urlsplit(source)
    except ValueError:  # whoever opens it is told so
        return f"not-a-url{ending}"
    host = parts.netloc.rpartition("@")[2].replace(":", "_")
    path = UNSAFE_IN_NAMES.sub("_", unquote(parts.path)).strip("/")
    parts_kept = [host or "no-host", *(part for part in path.split("/") if part not in ("", ".", ".."))]
    name = "/".join(parts_kept)
    known = len(parts_kept) > 1 and f".{name.rpartition('.')[2].lower()}" in KNOWN_ENDINGS
    return name if known else name + ending


def _key_of(source: str) -> str:
    """ "bucket/key" of an s3:// URL."""
    return source.partition("://")[2]
