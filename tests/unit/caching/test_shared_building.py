"""Killed at any moment or shared by several processes, a cache ends as one built without disturbance."""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simpletuner.caching.claims import FOLDER, SILENCE_SECONDS, Claims, is_being_built
from simpletuner.core.files import STAGING, TRASH, create_exclusive, discard_if

from .builders import STARTS, Builders, build_once, contents
from .conftest import write_clip

ENTRIES = 3 * len(STARTS)
DIGEST = "0" * 64


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films") / "clips"
    for name, level in (("dark.mp4", 0), ("dark.mkv", 255), ("deep/grey.mp4", 128)):
        write_clip(root / name, level)
    return root


@pytest.fixture(scope="module")
def builders(films: Path) -> Iterator[Builders]:
    with Builders(films) as server:
        yield server


def age_litter(folder: Path) -> list[Path]:
    """Make what killed processes left look an hour old; gives it."""
    litter = [path for path in folder.rglob("*") if path.name.startswith((STAGING, TRASH))]
    for path in litter:
        os.utime(path, (time.time() - 3700,) * 2)
    return litter


def kill_often(builders: Builders, films: Path, folder: Path, kills: int, **form: object) -> None:
    """Kill builds of one cache at random moments, check what can be seen after each, and build the rest."""
    undisturbed = folder.with_name("undisturbed")
    build_once(films, undisturbed, **form)  # type: ignore[arg-type]
    whole = contents(undisturbed)
    builders.build(folder.with_name("first"), **form)  # imports are over now
    started = time.monotonic()
    builders.build(folder.with_name("timed"), **form)
    seconds = time.monotonic() - started
    draw = random.Random(kills)
    done, partly = 0, 0
    while done < kills or not partly:
        (result,) = builders.build(folder, kill_after=draw.uniform(0.0, 0.8) * seconds, **form)
        done += result["killed"]
        held = contents(folder)
        assert held.items() <= whole.items()
        partly += 0 < len(held) < len(whole)
        if len(held) == len(whole):
            shutil.rmtree(folder)
            seconds *= 0.9 if not partly else 1.0  # the machine was busier while the time was taken
    age_litter(folder)
    (last,) = builders.build(folder, **form)
    assert last["encoded"] + last["reused"] == ENTRIES
    assert contents(folder) == whole
    assert not age_litter(folder)
    assert not (folder / FOLDER).exists()
    unsealed = {path.name for path in folder.rglob("*.shard") if not path.with_name(path.name + ".index").exists()}
    assert not unsealed


@pytest.mark.parametrize("form", ["files", "shards"])
def test_five_kills_leave_nothing_torn(form: str, builders: Builders, films: Path, tmp_path: Path) -> None:
    kill_often(builders, films, tmp_path / "cache", 5, form=form, pause=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("form", ["files", "shards"])
def test_a_hundred_kills_leave_nothing_torn(
    form: str, compress: bool, builders: Builders, films: Path, tmp_path: Path
) -> None:
    kill_often(builders, films, tmp_path / "cache", 100, form=form, compress=compress)


@pytest.mark.parametrize("form", ["files", "shards"])
def test_two_processes_share_the_work(form: str, builders: Builders, films: Path, tmp_path: Path) -> None:
    results = builders.build(tmp_path / "cache", children=2, form=form, pause=0.02)
    # No entry was made twice, and both know all of them.
    assert sum(result["encoded"] for result in results) == ENTRIES
    assert [result["encoded"] + result["reused"] for result in results] == [ENTRIES, ENTRIES]
    assert all(result["encoded"] > 0 for result in results)
    build_once(films, tmp_path / "alone", form=form)
    assert contents(tmp_path / "cache") == contents(tmp_path / "alone")
    assert not (tmp_path / "cache" / FOLDER).exists()


def test_what_a_killed_partner_claimed_is_made_by_the_other(builders: Builders, films: Path, tmp_path: Path) -> None:
    builders.build(tmp_path / "cache", kill_after=0.3, pause=0.1)
    assert is_being_built(tmp_path / "cache") is False
    (result,) = builders.build(tmp_path / "cache")
    assert result["encoded"] + result["reused"] == ENTRIES


def test_one_builder_at_a_time_holds_an_entry(tmp_path: Path) -> None:
    with Claims([tmp_path]) as one, Claims([tmp_path]) as two:
        assert one.take(tmp_path, DIGEST)
        assert not two.take(tmp_path, DIGEST)
        assert one.has_company(tmp_path)
        one.release(tmp_path, DIGEST)
        assert two.take(tmp_path, DIGEST)
    assert not (tmp_path / FOLDER).exists()


def test_a_file_system_without_links_does_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with Claims([tmp_path]) as one, Claims([tmp_path]) as two:
        assert one.take(tmp_path, DIGEST)
        assert not two.take(tmp_path, DIGEST)


def test_a_mark_is_discarded_only_with_the_expected_content(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert create_exclusive(mark, b"first")
    assert not create_exclusive(mark, b"second")
    assert not discard_if(mark, b"another")
    assert mark.read_bytes() == b"first"
    assert discard_if(mark, b"first")
    assert not discard_if(mark, b"first")
    assert list(tmp_path.iterdir()) == []


def test_a_builder_elsewhere_counts_until_it_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Claims([tmp_path]) as one:
        assert one.take(tmp_path, DIGEST)
        mark = next((tmp_path / FOLDER).glob("*.alive"))
        mark.write_text(mark.read_text().replace('"host": "', '"host": "another-machine-'))
        with Claims([tmp_path]) as two:
            assert not two.take(tmp_path, DIGEST)
            silent = time.time() - SILENCE_SECONDS - 5
            os.utime(mark, (silent, silent))
            assert two.take(tmp_path, DIGEST)


def test_a_number_that_another_process_inherited_is_no_life(tmp_path: Path) -> None:
    with Claims([tmp_path]) as one:
        mark = next((tmp_path / FOLDER).glob("*.alive"))
        mark.write_text(mark.read_text().replace('"started": ', '"started": 9'))
        with Claims([tmp_path]) as two:
            assert not two.has_company(tmp_path)
            assert one.builder != two.builder
