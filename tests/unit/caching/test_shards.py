"""A shard shows whole records only, whatever happened to its writer."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from simpletuner.caching import shards
from simpletuner.caching.entry import DamagedEntryError
from simpletuner.caching.shards import ShardReader, ShardWriter, scan_shard, seal_abandoned, shards_in
from simpletuner.core.errors import UserError


def digest(number: int) -> str:
    return f"{number:064x}"


def fill(folder: Path, count: int, shard_bytes: int = 1 << 20, writer: str = "one", close: bool = True) -> ShardWriter:
    shard = ShardWriter(folder, writer, shard_bytes)
    for number in range(count):
        shard.append("latents", digest(number), bytes([number]) * (10 + number))
    if close:
        shard.close()
    return shard


def payloads(folder: Path) -> list[bytes]:
    reader = ShardReader(folder)
    return [reader.read(record) for record in reader.all_records()]


@pytest.mark.parametrize("close", [True, False])
def test_records_come_back_from_closed_and_open_shards(close: bool, tmp_path: Path) -> None:
    fill(tmp_path, 5, close=close)
    reader = ShardReader(tmp_path)
    for number in range(5):
        record = reader.find(digest(number))
        assert record is not None
        assert reader.read(record) == bytes([number]) * (10 + number)
        assert reader.open(record).read(3) == bytes([number]) * 3
    assert reader.find(digest(9)) is None


def test_a_full_shard_is_closed_and_the_next_begun(tmp_path: Path) -> None:
    fill(tmp_path, 6, shard_bytes=150)
    assert len(shards_in(tmp_path)) == 3
    assert all(path.with_name(path.name + ".index").exists() for path in shards_in(tmp_path))
    assert len(payloads(tmp_path)) == 6


def test_a_reader_sees_what_is_appended_later(tmp_path: Path) -> None:
    shard = fill(tmp_path, 2, close=False)
    reader = ShardReader(tmp_path)
    shard.append("prompt", digest(7), b"later")
    assert reader.find(digest(7)) is None
    reader.refresh()
    record = reader.find(digest(7))
    assert record is not None
    assert (reader.read(record), record.kind) == (b"later", "prompt")
    shard.close()
    reader.refresh()
    assert len(reader.all_records()) == 3


def test_every_truncation_leaves_whole_records_only(tmp_path: Path) -> None:
    fill(tmp_path, 4, close=False)
    (path,) = shards_in(tmp_path)
    whole = path.read_bytes()
    ends = [record.end for record in scan_shard(path, 0)]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert len(payloads(tmp_path)) == sum(end <= length for end in ends)


def test_a_dead_writers_shard_is_cut_to_its_last_whole_record(tmp_path: Path) -> None:
    fill(tmp_path, 4, close=False)
    (path,) = shards_in(tmp_path)
    os.truncate(path, path.stat().st_size - 1)
    seal_abandoned(tmp_path, lambda writer: writer == "one")
    assert not path.with_name(path.name + ".index").exists()
    seal_abandoned(tmp_path, lambda writer: False)
    assert path.with_name(path.name + ".index").exists()
    assert len(payloads(tmp_path)) == 3
    assert path.stat().st_size == max(record.end for record in scan_shard(path, 0))


def test_an_empty_shard_of_a_dead_writer_goes(tmp_path: Path) -> None:
    fill(tmp_path, 1, close=False)
    (path,) = shards_in(tmp_path)
    os.truncate(path, 5)
    seal_abandoned(tmp_path, lambda writer: False)
    assert shards_in(tmp_path) == []


@pytest.mark.parametrize("position", range(0, 64, 7))
def test_a_damaged_head_hides_its_record_and_never_misleads(position: int, tmp_path: Path) -> None:
    fill(tmp_path, 3, close=False)
    (path,) = shards_in(tmp_path)
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)
    assert payloads(tmp_path) == []


@pytest.mark.parametrize("close", [True, False])
def test_a_record_given_up_is_not_found_again_and_its_successor_is(close: bool, tmp_path: Path) -> None:
    fill(tmp_path, 3, close=close)
    reader = ShardReader(tmp_path)
    record = reader.find(digest(1))
    assert record is not None
    reader.give_up(record)
    assert reader.find(digest(1)) is None
    assert ShardReader(tmp_path).find(digest(1)) is None
    assert len(payloads(tmp_path)) == 2
    again = ShardWriter(tmp_path, "two")
    again.append("latents", digest(1), b"new")
    again.close()
    found = ShardReader(tmp_path)
    successor = found.find(digest(1))
    assert successor is not None
    assert found.read(successor) == b"new"


def test_a_lost_or_foreign_index_is_done_without(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    (path,) = shards_in(tmp_path)
    index = path.with_name(path.name + ".index")
    for content in (b"", b"[]", b'{"format": "other"}', b"\xff\xfe"):
        index.write_bytes(content)
        assert len(payloads(tmp_path)) == 3
    index.unlink()
    assert len(payloads(tmp_path)) == 3


def test_a_shard_that_shrank_or_went_under_a_reader_is_told(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    (path,) = shards_in(tmp_path)
    reader = ShardReader(tmp_path)
    last = reader.find(digest(2))
    assert last is not None
    os.truncate(path, last.end - 1)
    with pytest.raises(DamagedEntryError):
        reader.read(last)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        reader.read(last)


def test_a_full_disk_keeps_whole_records_and_a_later_write_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = fill(tmp_path, 2, close=False)

    def half(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shards, "_write_all", half)
        with pytest.raises(UserError, match="no space left") as caught:
            shard.append("latents", digest(8), b"x" * 100)
    assert caught.value.exit_code == 6
    assert len(payloads(tmp_path)) == 2
    shard.append("latents", digest(9), b"y")
    shard.close()
    assert len(payloads(tmp_path)) == 3
