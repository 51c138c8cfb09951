"""The quarantine list keeps what is proven, forgets what changed, and the trash folder can always be undone."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from simpletuner.data.quarantine import Quarantine, remember_damaged, stored_file, without_quarantined
from simpletuner.data.sample import DamagedMedia, LeftOut, Sample, ShortMedia, UnreadMedia
from simpletuner.data.storage import LocalStorage, StoredFile
from simpletuner.data.trash import SETTLED_SECONDS, Spared, confirm_damage, move_to_trash

FILE = StoredFile("deep/bad.mp4", 10, "v1")
Planned = Callable[..., Sample]


def damage() -> object:
    raise DamagedMedia("damaged: no picture")


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_a_list_below_a_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Quarantine(tmp_path / "file/cache", "set").records == ()


def test_a_file_is_known_until_it_changes(tmp_path: Path) -> None:
    Quarantine(tmp_path, "set").add(FILE, "damaged: no picture", "decode")
    later = Quarantine(tmp_path, "set")
    assert later.reason_for(FILE) == "damaged: no picture"
    assert later.reason_for(replace(FILE, version="v2")) is None
    assert later.reason_for(replace(FILE, size_bytes=11)) is None
    assert later.reason_for(replace(FILE, path="other.mp4")) is None
    assert Quarantine(tmp_path, "another set").reason_for(FILE) is None


def test_a_file_stands_once_and_keeps_its_date(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, "set")
    quarantine.add(FILE, "reason", "decode")
    first = (tmp_path / "quarantine.jsonl").read_bytes()
    Quarantine(tmp_path, "set").add(FILE, "reason", "decode")
    assert (tmp_path / "quarantine.jsonl").read_bytes() == first
    quarantine.add(replace(FILE, version="v2"), "another reason", "probe")
    assert [(line["version"], line["reason"], line["stage"]) for line in lines(tmp_path)] == [
        ("v2", "another reason", "probe")
    ]


def test_two_processes_and_two_sets_share_one_file(tmp_path: Path) -> None:
    one, other, set_two = (Quarantine(tmp_path, name) for name in ("one", "one", "two"))
    one.add(FILE, "a", "decode")
    other.add(replace(FILE, path="b.mp4"), "b", "decode")
    set_two.add(FILE, "c", "encode")
    assert {(line["dataset"], line["path"]) for line in lines(tmp_path)} == {
        ("one", FILE.path), ("one", "b.mp4"), ("two", FILE.path),
    }  # fmt: skip
    assert Quarantine(tmp_path, "one").forget() == 2
    assert [line["dataset"] for line in lines(tmp_path)] == ["two"]


def test_another_decoder_gets_its_chance_and_foreign_lines_do_no_harm(tmp_path: Path) -> None:
    Quarantine(tmp_path, "set").add(FILE, "reason", "decode")
    path = tmp_path / "quarantine.jsonl"
    record = lines(tmp_path)[0] | {"decoder": "0.0.1"}
    path.write_text(json.dumps(record) + "\n" + '{"by": "hand"}\n' + "not json\n")
    quarantine = Quarantine(tmp_path, "set")
    assert quarantine.reason_for(FILE) is None
    assert [item.reason for item in quarantine.records] == ["reason"]


def test_forgetting_some(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, "set")
    quarantine.add_all([(FILE, "a"), (replace(FILE, path="b.mp4"), "b")], "probe")
    assert quarantine.forget(["b.mp4", "unknown.mp4"]) == 1
    assert [item.path for item in Quarantine(tmp_path, "set").records] == [FILE.path]


def test_only_damage_is_remembered(tmp_path: Path, planned: Planned) -> None:
    quarantines = {"test": Quarantine(tmp_path, "test")}
    samples = {name: planned(name) for name in ("bad.mp4", "short.mp4")}
    left_out = [
        LeftOut("test", "bad.mp4", "damaged", damaged=True),
        LeftOut("test", "short.mp4", "too short: 5 frames, needs 9"),
        LeftOut("test", "gone.mp4", "damaged", damaged=True),
    ]

    def find_file(item: LeftOut) -> StoredFile | None:
        return stored_file(samples[item.path]) if item.path in samples else None

    assert remember_damaged(left_out, quarantines, find_file, "decode") == 1
    kept, known = without_quarantined(list(samples.values()), quarantines)
    assert [sample.path for sample in kept] == ["short.mp4"]
    assert known == (LeftOut("test", "bad.mp4", "damaged", damaged=True),)


# Trash ------------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """deep/bad.mp4 with its caption, not touched for an hour."""
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    for name, content in {"bad.mp4": b"0123456789", "bad.txt": b"a caption", "good.mp4": b"good"}.items():
        path = folder / "deep" / name
        path.write_bytes(content)
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    return folder


def test_damage_is_confirmed_before_anything_moves(clips: Path) -> None:
    storage = LocalStorage(clips)
    file = storage.stat("deep/bad.mp4")
    assert confirm_damage(storage, file, damage) == "damaged: no picture"

    def unread() -> object:
        raise UnreadMedia("cannot be read (Input/output error)")

    def failing() -> object:
        raise OSError(5, "Input/output error")

    def short() -> object:
        raise ShortMedia("its pictures end early", 20, 0.8)

    for doubt in (unread, failing, short, lambda: None):
        assert isinstance(confirm_damage(storage, file, doubt), Spared)
    assert isinstance(confirm_damage(storage, replace(file, version="older"), damage), Spared)
    assert isinstance(confirm_damage(storage, replace(file, size_bytes=9), damage), Spared)
    assert isinstance(confirm_damage(storage, replace(file, path="deep/gone.mp4"), damage), Spared)
    os.utime(clips / "deep/bad.mp4")
    young = confirm_damage(storage, storage.stat("deep/bad.mp4"), damage)
    assert isinstance(young, Spared)
    assert f"{SETTLED_SECONDS / 60:.0f} minutes" in young.reason


def test_a_moved_file_takes_its_caption_along_and_comes_back(clips: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in clips.rglob("*.*")}
    cache = tmp_path / "cache"
    moved = move_to_trash(LocalStorage(clips), "deep/bad.mp4", cache, "damaged")
    assert moved == (cache / "trash/deep/bad.mp4", cache / "trash/deep/bad.txt")
    assert [path.name for path in (clips / "deep").iterdir()] == ["good.mp4"]
    for line in (cache / "trash/undo.jsonl").read_text().splitlines():
        subprocess.run(["sh", "-c", json.loads(line)["undo"]], check=True)
    assert {path: path.read_bytes() for path in clips.rglob("*.*")} == before


def test_a_shared_caption_stays_and_nothing_in_the_trash_is_replaced(clips: Path, tmp_path: Path) -> None:
    storage, cache = LocalStorage(clips), tmp_path / "cache"
    (clips / "deep/bad.mov").write_bytes(b"sound")
    assert move_to_trash(storage, "deep/bad.mp4", cache, "damaged") == (cache / "trash/deep/bad.mp4",)
    assert (clips / "deep/bad.txt").exists()
    (clips / "deep/bad.mp4").write_bytes(b"another")
    assert move_to_trash(storage, "deep/bad.mp4", cache, "damaged") == (cache / "trash/deep/bad-2.mp4",)
    assert (cache / "trash/deep/bad.mp4").read_bytes() == b"0123456789"


def test_a_trash_inside_the_data_set_is_refused(clips: Path) -> None:
    spared = move_to_trash(LocalStorage(clips), "deep/bad.mp4", clips / "cache", "damaged")
    assert isinstance(spared, Spared)
    assert "inside the data set" in spared.reason
    assert (clips / "deep/bad.mp4").exists()
