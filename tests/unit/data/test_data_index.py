"""The index: what it remembers, when it forgets, and that neither damage, kills nor company make it fail."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simpletuner.config.dataset import ClipDataset
from simpletuner.data import index as index_module
from simpletuner.data.index import FileIndex, index_path, open_index
from simpletuner.data.sample import DamagedMedia, MediaInfo, Unfit, UnreadMedia, UnusableMedia
from simpletuner.data.storage import StoredFile

ROWS = 200  # of one transaction of the writer below
WRITER = """
import sys
from pathlib import Path
from simpletuner.data.index import FileIndex
from simpletuner.data.sample import MediaInfo
from simpletuner.data.storage import StoredFile
path, name, batches, rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with FileIndex(path) as index:
    for batch in range(batches):
        files = [StoredFile(f"{name}/{batch}/{number}.mp4", 9, "1") for number in range(rows)]
        info = MediaInfo("video", 64, 48, 25.0, 9, 0.36, 0, 1.0, "h264", 9, "1")
        index.save_media([(file, info, "") for file in files])
        sys.stdout.write(f"{batch}\\n")
        sys.stdout.flush()
    sys.stdout.write(f"notes {index.notes}\\n")
"""


def stored(path: str, size: int = 9, version: str = "1") -> StoredFile:
    return StoredFile(path, size, version)


def facts(file: StoredFile, frames: int = 49) -> MediaInfo:
    return MediaInfo("video", 640, 480, 29.97, frames, frames / 29.97, 90, 1.0625, "h264", file.size_bytes,
                     file.version, True, True, "yuv420p10le", "aac")  # fmt: skip


def by_path(*files: StoredFile) -> dict[str, StoredFile]:
    return {file.path: file for file in files}


def filled(path: Path, count: int = 3) -> list[StoredFile]:
    files = [stored(f"{number}.mp4") for number in range(count)]
    with FileIndex(path) as index:
        index.save_media([(file, facts(file), "hash") for file in files])
        assert index.notes == []
    return files


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    good, bad, other = stored("a.mp4"), stored("b.mp4"), stored("c.mp4")
    with FileIndex(tmp_path / "deep" / "index.sqlite") as index:
        index.save_media([(good, facts(good), "x"), (bad, DamagedMedia("cut"), ""), (other, UnusableMedia("HDR"), "")])
    with FileIndex(tmp_path / "deep" / "index.sqlite") as index:
        found = index.find_media(by_path(good, bad, other, stored("d.mp4")))
        assert index.notes == []
    assert found["a.mp4"] == facts(good)
    assert [(type(found[name]), str(found[name])) for name in ("b.mp4", "c.mp4")] == [
        (DamagedMedia, "cut"), (UnusableMedia, "HDR"),
    ]  # fmt: skip
    assert set(found) == {"a.mp4", "b.mp4", "c.mp4"}


def test_trouble_of_the_moment_is_not_kept(tmp_path: Path) -> None:
    file = stored("a.mp4")
    with FileIndex(tmp_path / "i") as index:
        index.save_media([(file, UnreadMedia("disk"), ""), (file, Unfit("the link points to nothing"), "")])
        assert index.find_media(by_path(file)) == {}


@pytest.mark.parametrize("now", [stored("a.mp4", 10, "1"), stored("a.mp4", 9, "2")])
def test_a_changed_file_is_not_known(tmp_path: Path, now: StoredFile) -> None:
    file = stored("a.mp4")
    with FileIndex(tmp_path / "i") as index:
        index.save_media([(file, facts(file), "")])
        index.write_facts("hash", [(file, [1, 2])])
        index.keep(stored("a.txt", now.size_bytes, "1"), "text")
        assert index.find_media(by_path(now)) == {}
        assert index.read_facts("hash", by_path(now)) == {}
        assert index.find_media(by_path(file)) == {"a.mp4": facts(file)}
        assert index.read_facts("hash", by_path(file)) == {"a.mp4": [1, 2]}
        assert index.read_facts("other", by_path(file)) == {}


def test_a_touched_file_keeps_its_facts_under_the_new_version(tmp_path: Path) -> None:
    old, new = stored("a.mp4", 9, "1"), stored("a.mp4", 9, "2")
    with FileIndex(tmp_path / "i") as index:
        index.save_media([(old, facts(old), "abc")])
        index.write_facts("scenes", [(old, [0.5])])
        assert index.find_contents(["a.mp4", "b.mp4"]) == {"a.mp4": (9, "abc")}
        index.renew_media([new])
        assert index.find_media(by_path(new)) == {"a.mp4": facts(new)}
        assert index.read_facts("scenes", by_path(new)) == {"a.mp4": [0.5]}


def test_texts_of_caption_files(tmp_path: Path) -> None:
    known, changed, book = stored("a.txt"), stored("a.txt", 9, "2"), stored("b.txt")
    with FileIndex(tmp_path / "i") as index:
        assert index.recall(known) is None
        index.keep(known, "a 猫\n")
        index.keep(book, "x" * 100_000)
    with FileIndex(tmp_path / "i") as index:
        assert index.recall(changed) is None
    with FileIndex(tmp_path / "i") as index:
        assert index.recall(known) == "a 猫\n"
        assert index.recall(book) is None


def test_a_header_that_lied_is_corrected(tmp_path: Path) -> None:
    file = stored("a.mp4")
    with FileIndex(tmp_path / "i") as index:
        index.save_media([(file, facts(file, 130), "")])
        index.note_true_length(stored("a.mp4", 9, "2"), 1, 0.04)  # another version: left alone
        index.note_true_length(file, 119, 3.97)
        found = index.find_media(by_path(file))["a.mp4"]
    assert isinstance(found, MediaInfo)
    assert (found.num_frames, found.duration_seconds, found.frame_rate) == (119, 3.97, 29.97)


def test_files_that_went_are_forgotten(tmp_path: Path) -> None:
    files = filled(tmp_path / "i")
    with FileIndex(tmp_path / "i") as index:
        index.write_facts("hash", [(file, 1) for file in files])
        index.keep(stored("gone.txt"), "x")
        index.flush()
        assert index.forget_missing({"1.mp4", "new.mp4"}) == 2
        assert set(index.find_media(by_path(*files))) == {"1.mp4"}
        assert set(index.read_facts("hash", by_path(*files))) == {"1.mp4"}
        assert index.recall(stored("gone.txt")) is None


def test_nothing_is_created_before_there_is_something_to_keep(tmp_path: Path) -> None:
    with FileIndex(tmp_path / "new" / "i") as index:
        assert index.find_media(by_path(stored("a.mp4"))) == {}
        assert index.forget_missing([]) == 0
        index.save_media([])
    assert list(tmp_path.iterdir()) == []


def test_where_it_lies() -> None:
    assert index_path(ClipDataset(id="d", cache_dir_vae="cache/d")) == Path("cache/d/index.sqlite")
    with open_index(ClipDataset(id="d")) as index:  # no folder: in memory
        file = stored("a.mp4")
        index.save_media([(file, facts(file), "")])
        assert index.find_media(by_path(file)) == {"a.mp4": facts(file)}
        assert index.notes == []


# Damage -----------------------------------------------------------------------------------------


def _survives(path: Path) -> list[str]:
    """Use the index at `path` as a scan does; whatever it was, the new facts are there afterwards."""
    file = stored("new.mp4")
    with FileIndex(path) as index:
        index.find_media(by_path(file))
        index.recall(stored("a.txt"))
        index.save_media([(file, facts(file), "")])
        assert index.find_media(by_path(file)) == {"new.mp4": facts(file)}
        index.forget_missing({"new.mp4"})
        return index.notes


@pytest.mark.parametrize("content", [b"not a database" * 100, b"\0" * 5000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_index_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "index.sqlite"
    path.write_bytes(content)
    (note,) = _survives(path)
    assert f"it is now '{path}.damaged'" in note
    assert (tmp_path / "index.sqlite.damaged").read_bytes() == content
    assert _survives(path) == []


def test_an_empty_file_is_a_new_index(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").touch()
    assert _survives(tmp_path / "index.sqlite") == []


def test_databases_of_others_and_of_newer_programs_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    for change in ("CREATE TABLE files (path, song)", f"PRAGMA user_version = {index_module.SCHEMA + 1}"):
        path.unlink(missing_ok=True)
        if "TABLE" not in change:
            filled(path)
        with sqlite3.connect(path) as other:
            other.execute(change)
        other.close()
        (note,) = _survives(path)
        assert "damaged or not ours" in note


def test_an_index_of_an_older_program_is_filled_anew_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    filled(path)
    with sqlite3.connect(path) as older:
        older.execute("ALTER TABLE files DROP COLUMN transfer")
        older.execute(f"PRAGMA user_version = {index_module.SCHEMA - 1}")
    older.close()
    assert _survives(path) == []


def test_every_kind_of_damage_is_survived(tmp_path: Path) -> None:
    """Cut at every twentieth of its length, and bytes flipped all over: facts or silence, never an error."""
    whole_path = tmp_path / "whole"
    files = filled(whole_path, 300)
    whole = whole_path.read_bytes()
    dice = random.Random(0)
    damaged = [whole[: len(whole) * part // 20] for part in range(1, 20)]
    for _ in range(20):
        flipped = bytearray(whole)
        for _ in range(30):
            flipped[dice.randrange(100, len(flipped))] ^= 1 << dice.randrange(8)
        damaged.append(bytes(flipped))
    for number, content in enumerate(damaged):
        path = tmp_path / str(number) / "index.sqlite"
        path.parent.mkdir()
        path.write_bytes(content)
        with FileIndex(path) as index:
            for answer in index.find_media(by_path(*files)).values():
                assert isinstance(answer, (MediaInfo, Unfit))
        _survives(path)


def test_a_journal_of_the_damaged_file_is_not_played_back(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    path.write_bytes(b"junk" * 2000)
    (tmp_path / "index.sqlite-journal").write_bytes(bytes.fromhex("d9d505f920a163d7") + b"\0" * 5000)
    _survives(path)
    assert _survives(path) == []
    assert not (tmp_path / "index.sqlite-journal").exists()


@pytest.mark.parametrize("place", ["a file/index.sqlite", "a folder"])
def test_a_place_that_cannot_be_written_leaves_it_in_memory(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    (note,) = _survives(tmp_path / place)
    assert "cannot be used" in note
    assert "headers are read again at the next start" in note


def test_other_rules_of_reading_forget_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "i"
    (file, *_) = filled(path)
    bad = stored("bad.mp4")
    with FileIndex(path) as index:
        index.save_media([(bad, DamagedMedia("no"), "")])
    with sqlite3.connect(path) as edited:  # a newer decoder may read what an older one refused
        edited.execute("UPDATE meta SET value = '1.0' WHERE name = 'decoder'")
    edited.close()
    with FileIndex(path) as index:
        assert set(index.find_media(by_path(file, bad))) == {"0.mp4"}
    monkeypatch.setattr(index_module, "PROBE_RECIPE", index_module.PROBE_RECIPE + 1)
    with FileIndex(path) as index:
        assert index.find_media(by_path(file, bad)) == {}
        assert index.notes == []


# Company and kills ------------------------------------------------------------------------------


def _start_writer(path: Path, name: str, batches: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, str(path), name, str(batches), str(ROWS)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def _rows_per_batch(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for (name,) in connection.execute("SELECT path FROM files"):
            batch = name.rpartition("/")[0]
            counts[batch] = counts.get(batch, 0) + 1
    connection.close()
    return counts


def test_two_processes_write_one_index_from_its_creation_on(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    writers = [_start_writer(path, name, 10) for name in "ab"]
    told = [writer.communicate(timeout=60)[0].splitlines()[-1] for writer in writers]
    assert told == ["notes []", "notes []"]
    assert _rows_per_batch(path) == {f"{name}/{batch}": ROWS for name in "ab" for batch in range(10)}


def test_two_processes_that_find_damage_mend_it_once(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    path.write_bytes(b"junk" * 1000)
    writers = [_start_writer(path, name, 5) for name in "ab"]
    for writer in writers:
        writer.communicate(timeout=60)
    assert _rows_per_batch(path) == {f"{name}/{batch}": ROWS for name in "ab" for batch in range(5)}
    assert (tmp_path / "index.sqlite.damaged").read_bytes() == b"junk" * 1000


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_keeps_whole_batches(tmp_path: Path, kills: int) -> None:
    dice = random.Random(kills)
    path = tmp_path / "index.sqlite"
    promised = 0
    for number in range(kills):
        writer = _start_writer(path, f"run{number}", 10_000)
        assert writer.stdout is not None
        for _ in range(3):
            writer.stdout.readline()
        time.sleep(dice.uniform(0, 0.03))
        writer.kill()
        promised += 3 + len(writer.stdout.read().split())  # a batch that was reported done is there
        writer.wait()
        writer.stdout.close()
    batches = _rows_per_batch(path)
    assert set(batches.values()) == {ROWS}
    assert len(batches) >= promised - kills  # the last line may be a fragment
    assert _survives(path) == []
