"""Pruning removes what is stale or damaged and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from simpletuner.caching.claims import Claims
from simpletuner.caching.prune import find_waste, remove_waste
from simpletuner.caching.shards import SUFFIX
from simpletuner.caching.store import EntryReader, EntryWriter, Key, Storing, judge_entries
from simpletuner.core.errors import UserError


def facts(name: str, kind: str = "latents") -> dict[str, Any]:
    return {"kind": kind, "source": name}


def add(folder: Path, names: str, kind: str = "latents", builder: str = "one", **form: Any) -> list[Key]:
    keys = [Key.of(folder, f"deep/{name}.mp4", facts(name, kind)) for name in names]
    writer = EntryWriter(builder, Storing(**form))
    for name, key in zip(names, keys, strict=True):
        writer.write(key, facts(name, kind), {"latents": torch.full((40,), float(ord(name)))})
    writer.close()
    return keys


def usable(folder: Path, keys: list[Key]) -> int:
    return len(judge_entries(EntryReader([folder]), keys, verify=True, workers=1)[0])


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("form", ["files", "shards"])
def test_stale_entries_go_and_wanted_ones_stay(form: str, compress: bool, tmp_path: Path) -> None:
    wanted = add(tmp_path, "abc", form=form, compress=compress)
    gone = add(tmp_path, "xyz", builder="two", form=form, compress=compress)
    texts = add(tmp_path, "t", kind="prompt", builder="three", form=form, compress=compress)
    strangers = {"index.sqlite": b"1", "model.safetensors": b"2", ".trash/clip.mp4": b"3", "quarantine.jsonl": b"4"}
    for name, content in strangers.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    waste = find_waste({"latents": wanted}, [tmp_path], workers=1)
    assert (len(waste.stale), len(waste.damaged)) == (3, 0)
    assert usable(tmp_path, [*wanted, *gone]) == 6  # looking removes nothing
    before = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    seen: list[int] = []
    remove_waste(waste, [tmp_path], seen.append)
    after = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert seen == [1, 2, 3]
    assert (usable(tmp_path, [*wanted, *texts]), usable(tmp_path, gone)) == (4, 0)
    assert before - after >= waste.bytes
    assert all((tmp_path / name).read_bytes() == content for name, content in strangers.items())
    assert find_waste({"latents": wanted}, [tmp_path], workers=1).entries == 0


@pytest.mark.parametrize("form", ["files", "shards"])
def test_damaged_entries_go(form: str, tmp_path: Path) -> None:
    keys = add(tmp_path, "abc", form=form)
    place = keys[1].path if form == "files" else next(tmp_path.rglob(f"*{SUFFIX}"))
    content = bytearray(place.read_bytes())
    # The last value of the second entry, told by its own bytes.
    position = content.rindex(torch.tensor(float(ord("b"))).numpy().tobytes())
    content[position] ^= 1
    place.write_bytes(content)
    waste = find_waste({"latents": keys}, [tmp_path], workers=1)
    assert [key for key, _ in waste.damaged] == [keys[1]]
    assert "checksum" in waste.damaged[0][1]
    assert waste.damaged_bytes > 160
    remove_waste(waste, [tmp_path], lambda done: None)
    reader = EntryReader([tmp_path])
    assert usable(tmp_path, keys) == 2
    with pytest.raises(FileNotFoundError):
        reader.peek(keys[1])


def test_second_copies_in_shards_go(tmp_path: Path) -> None:
    keys = add(tmp_path, "abc", form="shards")
    add(tmp_path, "bc", builder="two", form="shards")
    waste = find_waste({"latents": keys}, [tmp_path], workers=1)
    assert len(waste.stale) == 2
    remove_waste(waste, [tmp_path], lambda done: None)
    assert usable(tmp_path, keys) == 3
    assert len(list(tmp_path.rglob(f"*{SUFFIX}"))) == 1


def test_nothing_is_removed_while_somebody_builds(tmp_path: Path) -> None:
    keys = add(tmp_path, "ab")
    waste = find_waste({"latents": keys[:1]}, [tmp_path], workers=1)
    with Claims([tmp_path]), pytest.raises(UserError, match="filling the cache"):
        remove_waste(waste, [tmp_path], lambda done: None)
    assert usable(tmp_path, keys) == 2
