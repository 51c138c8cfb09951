"""Where the files of a data set may lie: the values of `type`, data rows only."""

from __future__ import annotations

from dataclasses import dataclass

from simpletuner.core.catalog import Catalog


@dataclass(frozen=True)
class BackendRow:
    """One kind of place.

    Attributes:
        target: Function `(ClipDataset) -> Storage`; see `data/storage.py`.
        needs: Keys of the entry without which the place cannot be found.
        extra: Extra of the package that must be installed; empty when none is needed.
        help: One sentence for people.
    """

    target: str
    needs: tuple[str, ...]
    extra: str = ""
    help: str = ""


@dataclass(frozen=True)
class TableSource:
    """One kind of table of captions and sizes.

    Attributes:
        target: Function `(ClipDataset, Storage) -> FactTable | None`; see `data/storage.py`.
        extra: Extra of the package that must be installed; empty when none is needed.
        help: One sentence for people.
    """

    target: str
    extra: str = ""
    help: str = ""


BACKENDS: Catalog[BackendRow] = Catalog(
    "type of data set",
    {
        "local": BackendRow(
            "simpletuner.data.storage:open_local", ("instance_data_dir",), help="A folder of this machine."
        ),
        "aws": BackendRow(
            "simpletuner.data.backends.object_store:open_object_store",
            ("aws_bucket_name",),
            extra="s3",
            help="A bucket of an S3-compatible object store, read in ranges.",
        ),
        "huggingface": BackendRow(
            "simpletuner.data.backends.hub:open_hub",
            ("dataset_name",),
            help="A data set of the Hugging Face Hub, laid out as files or as rows of a table (extra `hub`).",
        ),
        "csv": BackendRow(
            "simpletuner.data.backends.lists:open_list",
            ("csv_file",),
            help="A .csv, .tsv or .parquet list of paths and URLs, with captions (parquet: extra `tables`).",
        ),
    },
)

# Tables beside the files: by type of data set, and the one that the `parquet` block names.
TABLES: Catalog[TableSource] = Catalog(
    "table of captions",
    {
        "csv": TableSource("simpletuner.data.backends.lists:facts_of_list", help="The columns of the list itself."),
        "huggingface": TableSource(
            "simpletuner.data.backends.hub:facts_of_hub", help="The columns of a Hub data set, or its metadata.csv."
        ),
        "parquet": TableSource(
            "simpletuner.data.backends.tables:open_table", extra="tables", help="The table of the `parquet` block."
        ),
    },
)
