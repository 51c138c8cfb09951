"""Data sets of the Hugging Face Hub laid out as files: clips with texts beside them, or a metadata table.

The commit is fixed when the repository is listed, so that a push during a run changes nothing.
Address and token of the Hub are found by its own library (`HF_ENDPOINT`, `HF_TOKEN`, its log-in).
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.backends.packages import need_package
from simpletuner.data.backends.patience import TRANSIENT_STATUSES, MissingError, Patience, UnreachableError
from simpletuner.data.backends.remote import Faults, open_blocks
from simpletuner.data.backends.tables import Columns, RowTable, normal_name, read_columns, read_table, row_of
from simpletuner.data.sample import Unfit
from simpletuner.data.storage import FactTable, Listing, Storage, StoredFile, TableRow

# Tables that describe the files of their folder, by the Hub's own convention.
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_COLUMN = "file_name"  # also as an ending: "video_file_name"


def columns_of_hub(dataset: ClipDataset) -> Columns:
    """The columns that the `huggingface` block of an entry names."""
    block = dataset.huggingface
    fallbacks = (*read_columns(block.fallback_caption_column), *read_columns(block.description_column))
    return Columns(
        read_columns(block.caption_column), fallbacks,
        block.width_column, block.height_column, block.num_frames_column, block.fps_column,
    )  # fmt: skip


class HubFiles:
    """The files of one commit of a data set repository; fulfils `Storage`."""

    # The Hub's library tries again by itself where it can.
    def __init__(self, dataset: ClipDataset, patience: Patience = Patience(attempts=2)) -> None:  # noqa: B008 - frozen
        """
        Args:
            dataset: Entry with `dataset_name`, `revision`, `cache_dir` and `streaming`.
            patience: How often requests are repeated.
        """
        self._dataset = dataset
        self._patience = patience
        self._hub = need_package("huggingface_hub", "hub", f"data set '{dataset.id}' (type 'huggingface')")
        self._errors = need_package("huggingface_hub.errors", "hub", "the Hub")
        # The base class of its HTTP client's errors, whichever client this version of the library uses.
        http_error: type[BaseException] = self._errors.HfHubHTTPError.__mro__[1]
        kinds = (OSError, http_error, self._errors.HFValidationError, self._errors.EntryNotFoundError)
        self._faults = Faults(kinds, self._explain)

    @property
    def name(self) -> str:
        """The repository, as owner/name."""
        return str(self._dataset.dataset_name)

    @property
    def place(self) -> str:
        revision = f"@{self._dataset.revision}" if self._dataset.revision else ""
        return f"Hub data set {self.name}{revision}"

    @cached_property
    def commit(self) -> str:
        """The commit that is read.

        Raises:
            UserError: If the repository or revision does not exist or cannot be reached.
        """
        revision = self._dataset.revision
        facts = self._told(lambda: self._hub.HfApi().dataset_info(self.name, revision=revision))
        return str(facts.sha)

    @cached_property
    def files(self) -> dict[str, StoredFile]:
        """Every file of the commit by its path.

        Raises:
            UserError: If the repository cannot be listed.
        """
        found = self._told(lambda: self._file_system.find(self._root, detail=True, refresh=True))
        cut = len(self._root) + 1
        return {name[cut:]: _stored(name[cut:], facts) for name, facts in sorted(found.items())}

    def list_files(self) -> Listing:
        """Files whose name, or a folder of it, begins with a dot are passed over."""
        passed_over: Counter[str] = Counter()
        files: list[StoredFile] = []
        for path, file in self.files.items():
            if any(part.startswith(".") for part in PurePosixPath(path).parts):
                passed_over["hidden files"] += 1
            else:
                files.append(file)
        return Listing(tuple(sorted(files, key=lambda file: file.path)), passed_over=dict(passed_over))

    def stat(self, path: str) -> StoredFile:
        if path not in self.files:
            raise Unfit(f"cannot be reached (commit {self.commit[:8]} of {self.name} has no such file)")
        return self.files[path]

    def open(self, path: str) -> BinaryIO:
        if path not in self.files:
            raise MissingError(f"commit {self.commit[:8]} of {self.name} has no such file")
        if self._dataset.streaming:
            full = f"{self._root}/{path}"
            return open_blocks(
                lambda: self._file_system.open(full, "rb", block_size=1, cache_type="none"),
                self._patience,
                self._faults,
            )
        return self._download(path).open("rb")

    def local_path(self, path: str) -> Path | None:
        if self._dataset.streaming:
            return None
        kept = self._hub.try_to_load_from_cache(
            self.name, path, cache_dir=self._cache_dir, revision=self.commit, repo_type="dataset"
        )
        return Path(kept) if isinstance(kept, str) else None

    @property
    def _cache_dir(self) -> str | None:
        folder = self._dataset.cache_dir
        return str(Path(folder).expanduser()) if folder else None

    @property
    def _root(self) -> str:
        return f"datasets/{self.name}@{self.commit}"

    @cached_property
    def _file_system(self) -> Any:
        return self._hub.HfFileSystem(skip_instance_cache=True)

    @cached_property
    def _silence(self) -> type:
        """Several files are fetched at once, each with a bar of its own; our progress counts files."""
        bar: Any = need_package("huggingface_hub.utils", "hub", "the Hub").tqdm

        class SilentBar(bar):  # type: ignore[misc]
            def __init__(self, *words: Any, **settings: Any) -> None:
                super().__init__(*words, **{**settings, "disable": True})

        return SilentBar

    def _download(self, path: str) -> Path:
        """Fetch one file whole; what an interrupted attempt left is continued by the library."""
        return Path(
            self._patience.retry(
                lambda: self._faults.told(
                    lambda: self._hub.hf_hub_download(
                        self.name, path, repo_type="dataset", revision=self.commit, cache_dir=self._cache_dir,
                        tqdm_class=self._silence,
                    )
                )
            )
        )  # fmt: skip

    def _told(self, action: Any) -> Any:
        try:
            return self._patience.retry(lambda: self._faults.told(action))
        except UnreachableError as error:
            raise UserError(
                f"data set '{self._dataset.id}': {self.place} cannot be read: {error.reason}",
                "It must exist, be reachable, and be open to the token in use",
                "Correct dataset_name or revision; for private data log in (`hf auth login`) or set HF_TOKEN; "
                "HF_ENDPOINT gives another address of the Hub",
            ) from error

    def _explain(self, error: BaseException) -> UnreachableError:
        errors = self._errors
        if isinstance(error, errors.OfflineModeIsEnabled):
            return UnreachableError("the Hub is switched off by HF_HUB_OFFLINE")
        if isinstance(error, errors.GatedRepoError):
            return UnreachableError("access must be asked for on its page first, or the token is missing")
        if isinstance(error, errors.RevisionNotFoundError):
            return MissingError(f"there is no revision '{self._dataset.revision}'")
        if isinstance(error, errors.RepositoryNotFoundError):
            return MissingError("there is no such data set, or the token may not see it")
        if isinstance(error, errors.HFValidationError):
            return MissingError("the name is not of the form owner/name")
        if isinstance(error, errors.LocalEntryNotFoundError):
            return UnreachableError("the Hub cannot be reached", transient=True)
        if isinstance(error, (FileNotFoundError, errors.EntryNotFoundError)):
            return MissingError("there is no such file")
        if isinstance(error, errors.HfHubHTTPError):
            status = int(error.response.status_code)
            return UnreachableError(f"the Hub answers {status}", transient=status in TRANSIENT_STATUSES)
        if isinstance(error, OSError) and not isinstance(error, (TimeoutError, ConnectionError)):
            return UnreachableError(error.strerror or type(error).__name__)
        return UnreachableError(f"the Hub cannot be reached ({type(error).__name__})", transient=True)


def metadata_table(files: Storage, dataset: ClipDataset) -> FactTable | None:
    """What the metadata tables of a repository, or of a folder laid out like one, say of its files.

    Raises:
        UserError: If one cannot be read.
    """
    owner = f"data set '{dataset.id}'"
    columns = columns_of_hub(dataset)
    rows: dict[str, TableRow] = {}
    tables: list[str] = []
    for file in files.list_files().files:
        path = PurePosixPath(file.path)
        if path.name not in METADATA_NAMES:
            continue
        tables.append(file.path)
        table = read_table(lambda name=file.path: files.open(name), file.path, owner)  # type: ignore[misc]
        names = [column for column in table.columns if column == FILE_COLUMN or column.endswith(f"_{FILE_COLUMN}")]
        kept = columns.keep(table.columns)
        for record in table.records:
            for column in names:
                name = normal_name(record.get(column))
                if name:
                    rows[str(path.parent / name)] = row_of(record, kept)
    return RowTable(f"{', '.join(tables)} of {files.place}", rows) if tables else None


def _stored(path: str, facts: dict[str, Any]) -> StoredFile:
    large = facts.get("lfs")
    version = large["sha256"] if large else facts.get("blob_id")
    return StoredFile(path, int(facts["size"]), str(version))
