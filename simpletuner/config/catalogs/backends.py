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


BACKENDS: Catalog[BackendRow] = Catalog(
    "type of data set",
    {
        "local": BackendRow(
            "simpletuner.data.storage:open_local", ("instance_data_dir",), help="A folder of this machine."
        ),
    },
)
