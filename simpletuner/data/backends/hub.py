"""Data sets of the Hugging Face Hub: decides whether a repository is read as files or as rows of a table.

Clips that lie in the repository are read as files; a repository of tables (parquet, arrow, tar) whose
column holds the clips is read as rows. A folder of this machine laid out like a repository works
likewise. The decision is made when the data set is first listed.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import BinaryIO

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.backends.hub_files import HubFiles, metadata_table
from simpletuner.data.backends.hub_rows import HubRows, holds_media
from simpletuner.data.listing import endings_of
from simpletuner.data.storage import FactTable, Listing, LocalStorage, Storage, StoredFile

logger = logging.getLogger(__name__)

TABLE_ENDINGS = frozenset({".parquet", ".arrow", ".tar"})


class HubStorage:
    """A data set of the Hub, or a local folder of one; fulfils `Storage`."""

    def __init__(self, dataset: ClipDataset) -> None:
        self._dataset = dataset
        self._folder = Path(str(dataset.dataset_name)).expanduser()
        self._lock = Lock()

    @property
    def place(self) -> str:
        return self._files.place

    @property
    def layout(self) -> Storage:
        """The repository as it is read: `HubRows`, or its files.

        Raises:
            UserError: If it cannot be listed, or holds nothing to train.
        """
        with self._lock:
            return self._layout

    def list_files(self) -> Listing:
        return self.layout.list_files()

    def stat(self, path: str) -> StoredFile:
        return self.layout.stat(path)

    def open(self, path: str) -> BinaryIO:
        return self.layout.open(path)

    def local_path(self, path: str) -> Path | None:
        return self.layout.local_path(path)

    @cached_property
    def _files(self) -> Storage:
        if self._folder.is_dir():
            return LocalStorage(self._folder, self._dataset.id)
        return HubFiles(self._dataset)

    @cached_property
    def _layout(self) -> Storage:
        rows = self._is_rows()
        logger.info("data set '%s': %s is read as %s", self._dataset.id, self.place, "rows" if rows else "files")
        return HubRows(self._dataset, self._files) if rows else self._files

    def _is_rows(self) -> bool:
        names = [PurePosixPath(file.path) for file in self._files.list_files().files]
        endings = frozenset(endings_of(self._dataset))
        tables = [name for name in names if name.suffix.lower() in TABLE_ENDINGS]
        clips = [name for name in names if name.suffix.lower() in endings]
        if not tables and not clips:
            kind = " or ".join(self._dataset.kinds)
            raise UserError(
                f"data set '{self._dataset.id}': {self.place} holds no {kind} files and no tables",
                "A Hub data set holds clips, or tables (.parquet, .arrow, .tar) with a column of clips",
                "Correct dataset_name, revision or dataset_type",
            )
        # Clips and tables together: the tables describe the clips, unless they hold clips themselves.
        return bool(tables) and (not clips or holds_media(self._dataset, self._files, [str(name) for name in tables]))


def open_hub(dataset: ClipDataset) -> Storage:
    """The storage of an entry of type `huggingface`; nothing is asked of the Hub yet."""
    return HubStorage(dataset)


def facts_of_hub(dataset: ClipDataset, storage: Storage) -> FactTable | None:
    """The columns of a Hub data set of rows, or the metadata tables of one of files; None if it has none.

    Raises:
        UserError: If a table cannot be read, or captions are asked for that no column holds.
    """
    assert isinstance(storage, HubStorage), "type huggingface is opened as a Hub data set"
    layout = storage.layout
    if isinstance(layout, HubRows):
        return layout
    table = metadata_table(layout, dataset)
    if table is None and dataset.caption_strategy == "huggingface":
        raise UserError(
            f"data set '{dataset.id}': {storage.place} has no captions in a table",
            "A data set of files takes them from metadata.csv, metadata.jsonl or metadata.parquet with a column "
            "file_name",
            "Use caption_strategy 'textfile' if texts lie beside the clips, or 'instanceprompt'",
        )
    return table
