"""Data sets of a fake Hub and of local folders laid out like its repositories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_servers import Fault, Place

from simpletuner.config.dataset import ClipDataset
from simpletuner.config.dataset_places import HubColumns
from simpletuner.core.errors import UserError
from simpletuner.data.backends.hub import HubStorage
from simpletuner.data.backends.hub_rows import HubRows
from simpletuner.data.sample import Unfit
from simpletuner.data.storage import FactTable, TableRow, open_facts, open_storage

NOTHING = {"captions": [], "width": None, "height": None, "num_frames": None, "fps": None}


def entry(name: Path | str, **settings: Any) -> ClipDataset:
    merged = {"id": "hub", "caption_strategy": "huggingface", "metadata_backend": "huggingface", **settings}
    return ClipDataset(type="huggingface", dataset_name=str(name), **merged)


def facts_of(dataset: ClipDataset) -> FactTable:
    table = open_facts(dataset, open_storage(dataset))
    assert table is not None
    return table


# Files --------------------------------------------------------------------------------------------


def test_a_repository_of_files_brings_its_metadata(hub: Place, in_own_process: Callable[..., Any]) -> None:
    hub.files |= {
        "/me/clips/train/a.mp4": b"aa",
        "/me/clips/train/b.mp4": b"bbb",
        "/me/clips/train/b.txt": b"text",
        "/me/clips/.gitattributes": b"x",
        "/me/clips/train/metadata.csv": b"file_name,text,w\na.mp4,a dog,640\n./b.mp4,,\n",
        "/me/other/c.mp4": b"c",
    }
    dataset = entry("me/clips", huggingface=HubColumns(fallback_caption_column="text", width_column="w"))
    found = in_own_process(dataset, "list", hub)
    assert found["place"] == "Hub data set me/clips"
    assert [(path, size) for path, size, _ in found["files"] if path.endswith("4")] == [
        ("train/a.mp4", 2), ("train/b.mp4", 3),
    ]  # fmt: skip
    assert all(version for _, _, version in found["files"])
    assert found["facts"]["train/a.mp4"] == {**NOTHING, "captions": ["a dog"], "width": 640}
    assert found["facts"]["train/b.mp4"] == NOTHING
    assert any(request.headers.get("authorization") == "Bearer hf_canary" for request in hub.seen)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_restless_hub_is_sat_out(hub: Place, clip: Path, in_own_process: Callable[..., Any], streaming: bool) -> None:
    hub.files |= {"/me/clips/a.mp4": clip.read_bytes(), "/me/clips/README.md": b"# Clips"}
    hub.faults.extend([Fault(503), Fault(), Fault()])
    found = in_own_process(entry("me/clips", streaming=streaming), "examine", hub)
    assert found["facts"][3] == 33


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dataset_name": "me/none"}, "no such data set"),
        ({"revision": "v9"}, "there is no revision 'v9'"),
        ({"dataset_name": "not/a/name"}, "not of the form owner/name"),
        ({"dataset_name": "me/texts"}, "no video files and no tables"),
    ],
)
def test_what_is_wrong_is_told(
    hub: Place, in_own_process: Callable[..., Any], settings: dict[str, str], said: str
) -> None:
    hub.files |= {"/me/clips/a.mp4": b"x", "/me/texts/README.md": b"x"}
    dataset = entry("me/clips").model_copy(update=settings)
    with pytest.raises(AssertionError, match=said):
        in_own_process(ClipDataset(**{**dataset.model_dump(exclude_unset=True), **settings}), "list", hub)


def test_a_local_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.mp4").write_bytes(b"x")
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "a.mp4", "caption": ["one", "two"]}\n')
    dataset = entry(tmp_path)
    storage = open_storage(dataset)
    assert [file.path for file in storage.list_files().files] == ["train/a.mp4", "train/metadata.jsonl"]
    assert storage.local_path("train/a.mp4") == tmp_path / "train" / "a.mp4"
    assert facts_of(dataset).facts("train/a.mp4") == TableRow(("one", "two"))


def test_files_without_a_table_have_no_captions_in_one(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    dataset = entry(tmp_path, caption_strategy="textfile")
    assert open_facts(dataset, open_storage(dataset)) is None
    with pytest.raises(UserError, match="no captions in a table"):
        facts_of(entry(tmp_path))


# Rows ---------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Path]:
    """Two tables of three rows each, two rows to a group; the last clip is missing."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    folder = tmp_path / "rows" / "data"
    folder.mkdir(parents=True)
    clips: list[Any] = [{"bytes": bytes([number]) * (number + 1), "path": None} for number in range(5)] + [None]
    for part in range(2):
        first = 3 * part
        table = arrow.table({
            "video": clips[first : first + 3],
            "text": [f"caption {number}" for number in range(first, first + 3)],
            "w": [64] * 3, "h": [48] * 3, "n": [9] * 3, "rate": [25.0] * 3,
        })  # fmt: skip
        parquet.write_table(table, folder / f"train-0000{part}.parquet", row_group_size=2)
    return tmp_path / "rows"


COLUMNS = HubColumns(
    caption_column="text", width_column="w", height_column="h", num_frames_column="n", fps_column="rate"
)


@pytest.fixture(params=[False, True], ids=["loaded", "streaming"])
def row_entry(request: pytest.FixtureRequest, rows: Path, tmp_path: Path) -> ClipDataset:
    return entry(
        rows, streaming=request.param, huggingface=COLUMNS, cache_dir=str(tmp_path / "cache"),
        cache_dir_vae=str(tmp_path / "vae"),
    )  # fmt: skip


def test_rows_are_files_with_facts(row_entry: ClipDataset) -> None:
    storage = open_storage(row_entry)
    listing = storage.list_files().files
    assert [file.path for file in listing] == [f"{number}.mp4" for number in range(6)]
    assert len({file.version for file in listing}) == 6
    for number in range(5):
        with storage.open(f"{number}.mp4") as handle:
            assert handle.read() == bytes([number]) * (number + 1)
        now = storage.stat(f"{number}.mp4")
        assert now.size_bytes == number + 1
        assert now.version == listing[number].version
    with pytest.raises(Unfit, match="the row holds no clip"):
        storage.stat("5.mp4")
    for wrong in ("6.mp4", "-1.mp4", "01.mp4", "x.mp4", "1.txt"):
        with pytest.raises(Unfit):
            storage.stat(wrong)
    with pytest.raises(FileNotFoundError):
        storage.open("6.mp4")
    table = open_facts(row_entry, storage)
    assert table is not None
    assert table.facts("4.mp4") == TableRow(("caption 4",), 64, 48, 9, 25.0)
    assert table.facts("6.mp4") is None


def test_versions_stay_and_sizes_are_remembered(row_entry: ClipDataset) -> None:
    first = open_storage(row_entry)
    seen = {file.path: first.stat(file.path) for file in first.list_files().files[:5]}
    again = open_storage(row_entry).list_files().files[:5]
    assert {file.path: file for file in again} == seen


def test_streaming_reads_a_group_of_rows_once(rows: Path, tmp_path: Path) -> None:
    dataset = entry(rows, streaming=True, huggingface=COLUMNS)
    opened: list[str] = []

    class Counting(HubStorage):
        pass

    storage = Counting(dataset)
    files = storage._files
    inner = files.open
    files.open = lambda path: (opened.append(path), inner(path))[1]  # type: ignore[method-assign]
    storage.list_files()
    opened.clear()
    for number in (0, 1, 0, 1):
        storage.open(f"{number}.mp4").close()
    assert len(opened) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"video_column": "vide"}, "no column 'vide'.*Did you mean 'video'"),
        ({"split": "test"}, "test"),
        ({"huggingface": HubColumns(caption_column="txt")}, "no column 'txt'.*Did you mean 'text'"),
    ],
)
def test_wrong_names_of_columns_and_splits_are_told(
    rows: Path, tmp_path: Path, streaming: bool, settings: dict[str, Any], said: str
) -> None:
    dataset = entry(rows, streaming=streaming, cache_dir=str(tmp_path / "cache"), **settings)
    storage = open_storage(dataset)
    with pytest.raises(UserError, match=said):
        storage.list_files()
        facts = open_facts(dataset, storage)
        assert facts is not None
        facts.facts("0.mp4")


def test_tables_beside_clips_describe_them_unless_they_hold_clips(rows: Path, clip: Path) -> None:
    (rows / "data" / "clip.mp4").write_bytes(clip.read_bytes())
    storage = open_storage(entry(rows))
    assert isinstance(storage, HubStorage)
    assert isinstance(storage.layout, HubRows)
    other = open_storage(entry(rows, video_column="text"))
    assert isinstance(other, HubStorage)
    assert not isinstance(other.layout, HubRows)


def test_rows_may_hold_paths(tmp_path: Path, clip: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    (tmp_path / "rows").mkdir()
    parquet.write_table(arrow.table({"video": [str(clip)], "caption": ["a"]}), tmp_path / "rows" / "t.parquet")
    for streaming in (False, True):
        storage = open_storage(entry(tmp_path / "rows", streaming=streaming, cache_dir=str(tmp_path / "cache")))
        assert storage.stat("0.mp4").size_bytes == clip.stat().st_size
        with storage.open("0.mp4") as handle:
            assert handle.read() == clip.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_repository(rows: Path, hub: Place, in_own_process: Callable[..., Any], streaming: bool) -> None:
    hub.files |= {f"/me/rows/{path.relative_to(rows)}": path.read_bytes() for path in rows.rglob("*.parquet")}
    hub.files["/me/rows/README.md"] = b"# Rows"
    found = in_own_process(entry("me/rows", streaming=streaming, huggingface=COLUMNS), "list", hub)
    assert [path for path, _, _ in found["files"]] == [f"{number}.mp4" for number in range(6)]
    assert found["facts"]["3.mp4"]["captions"] == ["caption 3"]
