"""Tables of captions and sizes: formats, columns, names, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.dataset import ClipDataset
from simpletuner.config.dataset_places import ParquetColumns
from simpletuner.core.errors import UserError
from simpletuner.data.backends.tables import Columns, row_of
from simpletuner.data.storage import FactTable, LocalStorage, TableRow, open_facts, open_storage

ROWS = [
    {"filename": "a.mp4", "caption": "a dog ", "short": "dog", "w": 640, "h": 480, "n": 121, "rate": 25.0},
    {"filename": "sub/b.mp4", "caption": "", "short": "cat", "w": None, "h": None, "n": None, "rate": None},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format of the ending."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({name: [row.get(name) for row in rows] for name in columns}), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    else:
        tab = "\t" if path.suffix == ".tsv" else ","
        cells = [
            columns,
            *([str(row.get(name) if row.get(name) is not None else "") for name in columns] for row in rows),
        ]
        path.write_text("\n".join(tab.join(row) for row in cells) + "\n", encoding="utf-8-sig")
    return path


@pytest.fixture
def table_of(tmp_path: Path) -> Callable[..., FactTable]:
    """table(path, **columns): the table of an entry."""

    def build(path: Path | str, caption_strategy: str = "parquet", **columns: Any) -> FactTable:
        entry = ClipDataset(
            id="t", instance_data_dir=str(tmp_path), metadata_backend="parquet", caption_strategy=caption_strategy,
            parquet=ParquetColumns(path=str(path), **columns),
        )  # fmt: skip
        table = open_facts(entry, LocalStorage(tmp_path))
        assert table is not None
        return table

    return build


NUMBERS = {"width_column": "w", "height_column": "h", "num_frames_column": "n", "fps_column": "rate"}


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_every_format_says_the_same(tmp_path: Path, table_of: Callable[..., FactTable], ending: str) -> None:
    path = write(tmp_path / f"facts{ending}", ROWS)
    table = table_of(path, fallback_caption_column="short", **NUMBERS)
    assert table.facts("a.mp4") == TableRow(("a dog",), 640, 480, 121, 25.0)
    assert table.facts("sub/b.mp4") == TableRow(("cat",))
    assert table.facts("b.mp4") is None
    assert ending in table.place


def test_the_table_may_lie_in_the_place_itself(tmp_path: Path, table_of: Callable[..., FactTable]) -> None:
    write(tmp_path / "facts.csv", ROWS)
    assert table_of("facts.csv").facts("a.mp4") is not None


@pytest.mark.parametrize(
    ("written", "path", "with_endings", "found"),
    [
        ("a.mp4", "a.mp4", True, True),
        ("a.mp4", "a.mp4", False, True),
        ("a", "a.mp4", False, True),
        ("a", "a.mp4", True, False),
        ("./x/a.mp4", "x/a.mp4", True, True),
        ("x\\a.mp4", "x/a.mp4", True, True),
        ("a", "x/a.mp4", False, True),
        ("a.v2", "a.v2.mp4", False, True),
        ("x/a.mp4", "y/a.mp4", True, False),
        ("a.mov", "a.mp4", False, False),
    ],
)
def test_names_find_their_files(
    tmp_path: Path, table_of: Callable[..., FactTable], written: str, path: str, with_endings: bool, found: bool
) -> None:
    write(tmp_path / "t.csv", [{"filename": written, "caption": "a"}])
    table = table_of("t.csv", identifier_includes_extension=with_endings)
    assert (table.facts(path) is not None) == found


def test_a_later_row_of_a_file_wins(tmp_path: Path, table_of: Callable[..., FactTable]) -> None:
    write(tmp_path / "t.csv", [{"filename": "a.mp4", "caption": text} for text in ("old", "new")])
    assert table_of("t.csv").facts("a.mp4") == TableRow(("new",))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"c": ["a", " ", "b "]}, TableRow(("a", "b"))),
        ({"c": "x", "d": "y"}, TableRow(("x", "y"))),
        ({"c": None, "e": "z"}, TableRow(("z",))),
        ({"c": float("nan"), "e": float("nan")}, TableRow()),
        ({"c": 5}, TableRow(("5",))),
        ({"w": "640.0", "n": " 121 ", "r": "30000/1001"}, TableRow((), 640, None, 121, 30000 / 1001)),
        ({"w": "wide", "n": -1, "r": "inf"}, TableRow()),
        ({"w": 0, "n": 0.5, "r": "1/0"}, TableRow()),
        ({"w": True and 64.0, "h": "1e3"}, TableRow((), 64, 1000)),
    ],
)
def test_cells_become_facts_or_nothing(record: dict[str, Any], expected: TableRow) -> None:
    columns = Columns(("c", "d"), ("e",), "w", "h", "n", "r")
    assert row_of(record, columns) == expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"filenam,caption\na,b\n", "no column 'filename'"),
        ("t.csv", b"filename,captions\na,b\n", "Did you mean 'captions'"),
        ("t.csv", b"", "no column 'filename'"),
        ("t.csv", b"filename,caption\n\xff\xfe,b\n", "not UTF-8"),
        ("t.jsonl", b'{"filename": "a"\n', "line 1 is not JSON"),
        ("t.jsonl", b"[1]\n", "not a JSON object"),
        ("t.parquet", b"PAR1 no table", "damaged"),
        ("t.xlsx", b"", "not a table that can be read"),
        ("none.csv", None, "does not exist"),
    ],
)
def test_bad_tables_are_told(
    tmp_path: Path, table_of: Callable[..., FactTable], name: str, content: bytes | None, said: str
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        table_of(name)
    assert "data set 't'" in str(caught.value)


def test_sizes_alone_need_no_captions(tmp_path: Path, table_of: Callable[..., FactTable]) -> None:
    write(tmp_path / "t.csv", [{"filename": "a.mp4", "w": 64}])
    assert table_of("t.csv", "textfile", width_column="w").facts("a.mp4") == TableRow((), 64)
    with pytest.raises(UserError, match="no column 'caption'"):
        table_of("t.csv", "parquet", width_column="w")


def test_semicolons_and_quotes_are_understood(tmp_path: Path, table_of: Callable[..., FactTable]) -> None:
    (tmp_path / "t.csv").write_text('filename;caption\na.mp4;"one; two\nthree ""four"""\n', encoding="utf-8")
    assert table_of("t.csv").facts("a.mp4") == TableRow(('one; two\nthree "four"',))


def test_a_folder_without_a_table_has_no_facts(tmp_path: Path) -> None:
    entry = ClipDataset(id="t", instance_data_dir=str(tmp_path))
    assert open_facts(entry, open_storage(entry)) is None


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from simpletuner.data.backends.packages import need_package

    with pytest.raises(UserError, match=r"pip install 'simpletuner\[tables\]'"):
        need_package("no_such_package.inside", "tables", "the table 'x'")
