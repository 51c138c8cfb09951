"""Captions by each strategy, and why a file has none."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.caption_files import LARGEST_CAPTION_BYTES
from simpletuner.data.captions import CaptionReader
from simpletuner.data.find import find_samples
from simpletuner.data.sample import Unfit
from simpletuner.data.storage import Listing, LocalStorage, StoredFile, TableRow

Dataset = Callable[..., ClipDataset]
GRID = FAMILIES["ltxvideo"].grid


class Shelf(LocalStorage):
    """A folder that counts what is opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[str] = []

    def open(self, path: str) -> BinaryIO:
        self.opened.append(path)
        return super().open(path)


class Table:
    """A table of captions in memory."""

    place = "table 'clips.parquet'"

    def __init__(self, rows: Mapping[str, TableRow]) -> None:
        self._rows = rows

    def facts(self, path: str) -> TableRow | None:
        return self._rows.get(path)


class Notebook:
    """A memory of caption files, as the index keeps it."""

    def __init__(self) -> None:
        self.texts: dict[tuple[str, int, str], str] = {}

    def recall(self, file: StoredFile) -> str | None:
        return self.texts.get((file.path, file.size_bytes, file.version))

    def keep(self, file: StoredFile, text: str) -> None:
        self.texts[(file.path, file.size_bytes, file.version)] = text


@pytest.fixture
def reader(tmp_path: Path, clip_dataset: Dataset) -> Callable[..., CaptionReader]:
    """reader({name: content}, **keys of the entry): a reader of a folder with these files."""

    def build(files: Mapping[str, bytes | str | Any], **keys: Any) -> CaptionReader:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(content, bytes):
                content = (content if isinstance(content, str) else json.dumps(content)).encode()
            path.write_bytes(content)
        storage = LocalStorage(tmp_path)
        return CaptionReader(clip_dataset(tmp_path, **keys), storage, storage.list_files())

    return build


def reason(reader: CaptionReader, path: str) -> str:
    with pytest.raises(Unfit) as caught:
        reader.read(path)
    return caught.value.reason


# Text files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        (b"A cat.\n", ("A cat.",)),
        ("Ein Bär.".encode(), ("Ein Bär.",)),
        (b"\xef\xbb\xbfWith a mark.", ("With a mark.",)),
        (b"one\r\n\r\n  two  \rthree\n", ("one", "two", "three")),
        ("一只猫\u2028same line".encode(), ("一只猫\u2028same line",)),
    ],
)
def test_text_files(reader, content: bytes, captions: tuple[str, ...]) -> None:
    assert reader({"a.txt": content}, caption_strategy="textfile").read("a.mp4") == captions


def test_lines_may_stay_together(reader) -> None:
    together = {"caption_strategy": "textfile", "disable_multiline_split": True}
    assert reader({"a.txt": "one\ntwo\n"}, **together).read("a.mp4") == ("one\ntwo",)


def test_the_ending_may_be_in_capitals_and_folders_do_not_mix(reader) -> None:
    files = {"one/A.TXT": "first", "two/A.txt": "second", "A.txt": "third"}
    found = reader(files, caption_strategy="textfile")
    assert [found.read(f"{folder}A.MP4") for folder in ("one/", "two/", "")] == [("first",), ("second",), ("third",)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "caption file 'a.b.txt' is missing"),
        (b"", "caption file 'a.b.txt' is empty"),
        (b" \r\n\t\n", "caption file 'a.b.txt' is empty"),
        (b"caf\xe9", "caption file 'a.b.txt' is not UTF-8 at byte 3; save it as UTF-8"),
        ("cat".encode("utf-16"), "caption file 'a.b.txt' is UTF-16, not UTF-8 (byte 0); save it as UTF-8"),
        (b"a\0b", "caption file 'a.b.txt' holds a zero byte at byte 1, it is not a text"),
        (b"a" * (LARGEST_CAPTION_BYTES + 1), "caption file 'a.b.txt' has more than 1048576 bytes"),
    ],
)
def test_no_usable_caption(reader, content: bytes | None, told: str) -> None:
    files = {} if content is None else {"a.b.txt": content}
    assert reason(reader(files, caption_strategy="textfile"), "a.b.mp4") == told


def test_a_caption_file_that_vanished_after_the_listing_is_told(reader, tmp_path: Path) -> None:
    found = reader({"a.txt": "x"}, caption_strategy="textfile")
    (tmp_path / "a.txt").unlink()
    assert reason(found, "a.mp4") == "caption file 'a.txt' is missing"


# JSON -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        ({"caption": "a cat"}, ("a cat",)),
        ({"captions": ["a cat", " ", "a pet "]}, ("a cat", "a pet")),
        ({"text": "a cat", "seed": 3}, ("a cat",)),
        ({"prompt": "a cat"}, ("a cat",)),
        (["a cat", "a pet"], ("a cat", "a pet")),
        ('"two\\nlines"', ("two\nlines",)),
    ],
)
def test_json_sidecars(reader, content: Any, captions: tuple[str, ...]) -> None:
    assert reader({"a.json": content}, caption_strategy="json").read("a.mp4") == captions


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "caption file 'a.json' is missing"),
        ("{'caption': 1}", "caption file 'a.json' is not JSON (line 1: Expecting property name"),
        ({"caption": 3}, "caption file 'a.json' has a caption that is neither a text nor a list of texts"),
        ({"fps": 25}, "has none of the keys caption, captions, text, prompt (it holds fps)"),
        ({"caption": " "}, "caption file 'a.json' has an empty caption"),
        ("[" * 100_000, "caption file 'a.json' is n"),
    ],
)
def test_json_sidecars_without_a_caption(reader, content: Any, told: str) -> None:
    assert told in reason(reader({} if content is None else {"a.json": content}, caption_strategy="json"), "a.mp4")


def test_lists_of_lines(reader) -> None:
    """A list names files from its own folder; the nearest list wins."""
    rows = [
        {"file_name": "one.mp4", "caption": "first"},
        {"path": "./deep/two.mp4", "captions": ["second", "another"]},
        {"video": "deep\\three", "text": "third"},
        {"image": "/elsewhere/four.mp4", "prompt": "fourth"},
        {"file_name": "one.mp4", "caption": "once more"},
    ]
    files = {
        "set/metadata.jsonl": "\n".join(json.dumps(row) for row in rows) + "\n\nno json\n[1]\n{}\n",
        "set/deep/captions.jsonl": '\ufeff{"file_name": "two.mp4", "caption": "nearest"}',
        "set/deep/notes.jsonl": '{"file_name": "five.mp4", "caption": "not a list of captions"}',
    }
    found = reader(files, caption_strategy="jsonl")
    assert found.read("set/one.mp4") == ("first", "once more")
    assert found.read("set/deep/two.mp4") == ("nearest",)
    assert found.read("set/deep/three.mov") == ("third",)
    assert found.read("set/deep/four.mp4") == ("fourth",)
    assert reason(found, "set/deep/five.mp4") == "'set/deep/captions.jsonl', 'set/metadata.jsonl' has no line for it"
    assert reason(found, "top.mp4") == (
        "there is no metadata.jsonl, captions.jsonl or prompts.jsonl in its folder or above"
    )
    assert found.notes == (
        "'set/metadata.jsonl' has lines that are passed over: line 7 (no JSON: Expecting value, column 1); "
        "line 8 (no object); line 9 (none of the keys file_name, path, video, image)",
    )


def test_equal_names_in_two_folders_are_not_mixed_up(reader) -> None:
    rows = [{"path": f"{folder}/a.mp4", "caption": folder} for folder in ("x", "y")]
    found = reader({"metadata.jsonl": "\n".join(map(json.dumps, rows))}, caption_strategy="jsonl")
    assert (found.read("x/a.mp4"), found.read("y/a.mp4")) == (("x",), ("y",))
    assert "has no line for it" in reason(found, "z/a.mp4")


# Tables, names and prompts ----------------------------------------------------------------------


def test_tables(tmp_path: Path, clip_dataset: Dataset) -> None:
    table = Table({"a.mp4": TableRow(captions=("first", "second")), "b.mp4": TableRow()})
    entry = clip_dataset(tmp_path, caption_strategy="parquet", metadata_backend="parquet")
    found = CaptionReader(entry, LocalStorage(tmp_path), Listing(()), table)
    assert found.read("a.mp4") == ("first", "second")
    assert reason(found, "b.mp4") == "table 'clips.parquet' has an empty caption for it"
    assert reason(found, "c.mp4") == "table 'clips.parquet' has no row for it"
    with pytest.raises(UserError, match="data set 'test' has no table of captions"):
        CaptionReader(entry, LocalStorage(tmp_path), Listing(())).read("a.mp4")


def test_file_names(reader) -> None:
    named = reader({}, caption_strategy="filename")
    assert named.read("d/a_red_ball.mp4") == ("a red ball",)
    assert reason(named, "d/___.mp4") == "the file name gives no caption"


def test_one_prompt_for_all(reader) -> None:
    assert reader({}, caption_strategy="instanceprompt", instance_prompt="a cat").read("a.mp4") == ("a cat",)
    several = reader({}, caption_strategy="instanceprompt", instance_prompt=["a cat", " ", "a pet "])
    assert several.read("a.mp4") == ("a cat", "a pet")
    with pytest.raises(UserError, match="data set 'test' has no instance_prompt"):
        reader({}, caption_strategy="instanceprompt").read("a.mp4")


def test_the_instance_prompt_may_replace_the_files(reader) -> None:
    alone = reader({}, caption_strategy="textfile", only_instance_prompt=True, instance_prompt="a cat")
    assert alone.read("a.mp4") == ("a cat",)


# Reading ----------------------------------------------------------------------------------------


def test_captions_read_once_are_not_opened_again(tmp_path: Path, clip_dataset: Dataset) -> None:
    """A run over a known folder opens no caption file; a changed one is read anew."""
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"caption {number}")
    entry, notebook = clip_dataset(tmp_path, caption_strategy="textfile"), Notebook()
    paths = [f"{number}.mp4" for number in range(5)]

    def read() -> tuple[list[tuple[str, ...]], list[str]]:
        shelf = Shelf(tmp_path)
        found = CaptionReader(entry, shelf, shelf.list_files(), None, notebook)
        found.read_ahead(paths, workers=3)
        captions = [found.read(path) for path in paths[:4]]
        assert reason(found, "4.mp4") == "caption file '4.txt' is missing"
        return captions, sorted(shelf.opened)

    assert read() == ([(f"caption {number}",) for number in range(4)], [f"{number}.txt" for number in range(4)])
    assert read()[1] == []
    (tmp_path / "2.txt").write_text("another")
    captions, opened = read()
    assert (captions[2], opened) == (("another",), ["2.txt"])


def test_texts_without_a_version_are_never_remembered(tmp_path: Path, clip_dataset: Dataset) -> None:
    (tmp_path / "a.txt").write_text("new")
    notebook = Notebook()
    notebook.texts[("a.txt", 3, "")] = "old"
    listing = Listing((StoredFile("a.txt", 3, ""),))
    entry = clip_dataset(tmp_path, caption_strategy="textfile")
    assert CaptionReader(entry, LocalStorage(tmp_path), listing, None, notebook).read("a.mp4") == ("new",)
    assert notebook.texts == {("a.txt", 3, ""): "old"}


def test_a_missing_caption_costs_no_access(tmp_path: Path, clip_dataset: Dataset) -> None:
    shelf = Shelf(tmp_path)
    found = CaptionReader(clip_dataset(tmp_path, caption_strategy="textfile"), shelf, Listing(()))
    assert reason(found, "a.mp4") == "caption file 'a.txt' is missing"
    assert shelf.opened == []


def test_unreadable_files_are_told_one_by_one_when_read_ahead(tmp_path: Path, clip_dataset: Dataset) -> None:
    class Closed(LocalStorage):
        def open(self, path: str) -> BinaryIO:
            if path == "b.txt":
                raise PermissionError(13, "Permission denied")
            return io.BytesIO(b"fine")

    listing = Listing(tuple(StoredFile(f"{name}.txt", 4, "1") for name in "abc"))
    found = CaptionReader(clip_dataset(tmp_path, caption_strategy="textfile"), Closed(tmp_path), listing)
    found.read_ahead(["a.mp4", "b.mp4", "c.mp4"], workers=2)
    assert (found.read("a.mp4"), found.read("c.mp4")) == (("fine",), ("fine",))
    assert reason(found, "b.mp4") == "caption file 'b.txt' cannot be read (Permission denied)"


def test_misspelt_caption_files_are_named(reader) -> None:
    found = reader({"a.mp4": b"", "b.mp4": b"", "a.txt": "x", "bb.txt": "y"}, caption_strategy="textfile")
    assert found.read("a.mp4") == ("x",)
    assert found.notes == ()  # nobody misses it yet
    reason(found, "b.mp4")
    assert found.notes == ("files without a caption: 1; caption files without a clip: 1 (bb.txt)",)


def test_all_missing_captions_are_one_error_when_asked_for(reader) -> None:
    names = ["a", "b", "c\nd"]
    for missing, problem in (("leave_out", False), ("error", True)):
        found = reader({"b.txt": "here"}, caption_strategy="textfile", missing_captions=missing)
        for name in names:
            if name != "b":
                reason(found, f"{name}.mp4")
        assert found.read("b.mp4") == ("here",)
        assert (found.problem() is not None) is problem
    told = found.problem()
    assert told is not None
    assert told.what == (
        "data set 'test': 2 files have no usable caption: a.mp4: caption file 'a.txt' is missing; "
        "c\\nd.mp4: caption file 'c\\nd.txt' is missing"
    )
    assert "'leave_out'" in told.fix


def test_a_run_stops_before_anything_is_loaded_when_captions_must_be_there(
    tmp_path: Path, write_clip: Callable[..., Path], clip_dataset: Dataset
) -> None:
    for name in "abc":
        write_clip(tmp_path / f"{name}.mp4", frames=9)
    (tmp_path / "a.txt").write_text("here")
    entry = {"caption_strategy": "textfile", "video": {"num_frames": 9}}

    def find(**keys: Any) -> Any:
        dataset = clip_dataset(tmp_path, cache_dir_vae=str(tmp_path / "cache"), **entry, **keys)
        return find_samples([dataset], {"test": LocalStorage(tmp_path)}, GRID, workers=1, emit=lambda event: None)

    assert [item.path for item in find().left_out] == ["b.mp4", "c.mp4"]
    with pytest.raises(UserError) as caught:
        find(missing_captions="error")
    (problem,) = caught.value.problems
    assert "2 files have no usable caption: b.mp4: caption file 'b.txt' is missing; c.mp4: " in problem.what
