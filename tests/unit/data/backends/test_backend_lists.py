"""Lists of paths and addresses: names, captions, sizes, and rows that lead nowhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from place_contract import HASTY
from small_servers import Fault, Place

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.backends.lists import ListStorage
from simpletuner.data.find import find_samples
from simpletuner.data.probe import probe
from simpletuner.data.sample import Unfit
from simpletuner.data.storage import TableRow, open_facts


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., tuple[ClipDataset, ListStorage]]:
    """listed(text, **settings): an entry and its storage."""

    def build(text: str, name: str = "list.csv", **settings: Any) -> tuple[ClipDataset, ListStorage]:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        merged = {"caption_strategy": "csv", "cache_dir_vae": str(tmp_path / "vae"), "resolution": 96,
                  "resolution_type": "pixel", **settings}  # fmt: skip
        dataset = ClipDataset(id="listed", type="csv", csv_file=str(path), **merged)
        return dataset, ListStorage(dataset, HASTY)

    return build


def names(storage: ListStorage) -> list[str]:
    return [file.path for file in storage.list_files().files]


def test_rows_get_readable_unique_names_without_secrets(listed: Callable[..., Any]) -> None:
    _, storage = listed(
        "url,caption\n"
        "sub/a.mp4,x\n/data/b.mp4,x\n"
        "https://host.org/v/c.mp4,x\nhttps://host.org/v/d.mp4?token=canary,x\n"
        "https://name:canary@host.org/e,x\nhttp://host.org/watch.php,x\ns3://bucket/f.mp4,x\n"
        "https://host.org/v/c.mp4#part,x\nhttps://host.org/../%2e%2e/g%0a.mp4,x\nhttps://[::/h.mp4,x\n"
    )
    found = names(storage)
    assert len(set(found)) == 10
    assert "canary" not in " ".join(found)
    assert {"sub/a.mp4", "data/b.mp4", "bucket/f.mp4", "host.org/watch.php.mp4", "host.org/e.mp4"} <= set(found)
    assert {"host.org/g_.mp4", "not-a-url.mp4"} <= set(found)
    assert all(name.endswith(".mp4") for name in found)


def test_names_do_not_depend_on_the_order(listed: Callable[..., Any]) -> None:
    rows = ["https://host.org/a.mp4,x", "http://host.org/a.mp4,y", "https://host.org/b.mp4,z"]
    _, forwards = listed("url,caption\n" + "\n".join(rows))
    _, backwards = listed("url,caption\n" + "\n".join(reversed(rows)), name="other.csv")
    assert names(forwards) == names(backwards)


def test_later_rows_win_and_empty_ones_are_counted(listed: Callable[..., Any]) -> None:
    dataset, storage = listed(
        "url,caption,width,height,num_frames,fps\na.mp4,old,1,1,1,1\n,nothing\na.mp4,new,640,480,121,25\n"
    )
    assert storage.facts("a.mp4") == TableRow(("new",), 640, 480, 121, 25.0)
    assert storage.list_files().passed_over == {"rows without a path": 1, "rows that a later one replaces": 1}
    assert open_facts(dataset, storage) is storage
    assert storage.facts("b.mp4") is None


def test_own_columns_are_used(listed: Callable[..., Any]) -> None:
    _, storage = listed(
        "clip,long,short,w\na.mp4,one,two,640\n", csv_url_column="clip", csv_caption_column=["long", "short"],
        csv_width_column="w",
    )  # fmt: skip
    assert storage.facts("a.mp4") == TableRow(("one", "two"), 640)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,caption\na.mp4,x\n", "no column 'url'"),
        ("url,text\na.mp4,x\n", "no column 'caption'"),
        ("url,caption\n,x\n", "names no files"),
    ],
)
def test_bad_lists_are_told(listed: Callable[..., Any], text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        listed(text)[1].list_files()


def test_captions_of_the_list_are_only_needed_when_asked_for(listed: Callable[..., Any]) -> None:
    _, storage = listed("url\na.mp4\n", caption_strategy="filename")
    assert names(storage) == ["a.mp4"]


def test_paths_start_at_the_list_or_the_folder(listed: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    shutil.copy(clip, tmp_path / "clips" / "a.mp4")
    (tmp_path / "clips" / "a.txt").write_text("beside", encoding="utf-8")
    for text, folder in (
        ("url,caption\nclips/a.mp4,x\n", ""),
        ("url,caption\na.mp4,x\n", tmp_path / "clips"),
        (f"url,caption\n{tmp_path}/clips/a.mp4,x\n", "/nowhere"),
        (f"url,caption\nfile://{tmp_path}/clips/a.mp4,x\n", ""),
    ):
        _, storage = listed(text, instance_data_dir=str(folder))
        (file,) = storage.list_files().files
        assert file.size_bytes == clip.stat().st_size
        assert probe(storage, file.path).num_frames == 33
        with storage.open(file.path.replace(".mp4", ".txt")) as handle:
            assert handle.read() == b"beside"
        with pytest.raises(FileNotFoundError):
            storage.open("other.txt")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("gone.mp4", "No such file.*; paths of the list start at '/"),
        ("/gone/gone.mp4", "cannot be reached .No such file or directory.$"),
        ("ftp://host.org/a.mp4", "not supported"),
        ("https://[::/a.mp4", "not a valid URL"),
        ("http://127.0.0.1:9/a.mp4", "127.0.0.1:9 cannot be reached"),
    ],
)
def test_rows_that_lead_nowhere_are_left_out(listed: Callable[..., Any], source: str, said: str) -> None:
    _, storage = listed(f"url,caption\n{source},x\n")
    (file,) = storage.list_files().files
    assert (file.size_bytes, file.version) == (-1, "")
    for act in (storage.stat, lambda path: probe(storage, path)):
        with pytest.raises(Unfit, match=said):
            act(file.path)


def test_a_list_of_addresses_becomes_samples(listed: Callable[..., Any], web: Place, clip: Path) -> None:
    """One address breaks off, one is gone; the second run asks for nothing."""
    web.files |= {f"/{name}.mp4": clip.read_bytes() for name in "ab"}
    rows = "".join(f"{web.url}/{name}.mp4,clip {name}\n" for name in "abc")
    dataset, _ = listed("url,caption\n" + rows, video={"num_frames": 9, "min_frames": 9})
    web.faults.extend([Fault(503), Fault(503)])

    def find() -> Any:
        storage = ListStorage(dataset, HASTY)
        return find_samples(
            [dataset], {"listed": storage}, FAMILIES["ltxvideo"].grid, workers=2, emit=lambda event: None
        )

    found = find()
    assert sorted(sample.captions for sample in found.samples) == [("clip a",), ("clip b",)]
    (missing,) = found.left_out
    assert "404" in missing.reason
    web.seen.clear()
    assert find().samples == found.samples
    assert {request.path for request in web.seen} == {"/c.mp4"}
