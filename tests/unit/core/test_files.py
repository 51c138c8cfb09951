"""Files that must survive a crash: whole or absent, never torn."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from simpletuner.core import files
from simpletuner.core.errors import ExitCode, UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_holds_exactly_what_was_given(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "deep" / "a.txt", "σ = 0.5\n")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "σ = 0.5\n".encode()
    assert names(tmp_path / "deep") == ["a.txt"]


def test_a_failed_write_keeps_the_old_content_and_leaves_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    files.write_atomic(target, "old")
    with pytest.raises(RuntimeError), files.staged_file(target) as staging:
        staging.write_text("half")
        raise RuntimeError("killed")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_staged_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-1"
    for content in ("first", "second"):
        with files.staged_folder(target) as staging:
            (staging / "inner").mkdir()
            (staging / "inner" / "state").write_text(content)
            assert not target.exists() or (target / "inner" / "state").read_text() == "first"
    assert (target / "inner" / "state").read_text() == "second"
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_failed_staged_folder_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-1"
    with files.staged_folder(target) as staging:
        (staging / "state").write_text("old")
    with pytest.raises(RuntimeError), files.staged_folder(target) as staging:
        (staging / "state").write_text("new")
        raise RuntimeError("killed")
    assert (target / "state").read_text() == "old"
    assert names(tmp_path) == ["checkpoint-1"]


def test_sweep_removes_only_litter(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f"{files.STAGING}1").write_text("half")
    (tmp_path / f"{files.TRASH}2").mkdir()
    (tmp_path / f"{files.TRASH}2" / "state").write_text("old")
    (tmp_path / "keep.txt").write_text("mine")
    assert files.sweep(tmp_path, recursive=False) == 1
    assert names(tmp_path / "sub") == [f"{files.STAGING}1"]
    assert files.sweep(tmp_path) == 1
    assert names(tmp_path) == ["keep.txt", "sub"]
    assert names(tmp_path / "sub") == []


@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_being_replaced_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    target = tmp_path / "checkpoint-1"
    with files.staged_folder(target) as staging:
        (staging / "state").write_text("old")
    rename, done = os.replace, []

    def fail_at_the_second(source: Path, goal: Path) -> None:
        done.append(goal)
        if len(done) == 2 or (killed and len(done) > 2):  # a killed process does not clean up either
            raise OSError(errno.EIO, "input/output error")
        rename(source, goal)

    monkeypatch.setattr("os.replace", fail_at_the_second)
    with pytest.raises(OSError), files.staged_folder(target) as staging:
        (staging / "state").write_text("new")
    monkeypatch.setattr("os.replace", rename)
    assert target.exists() is not killed
    files.sweep(tmp_path)
    assert (target / "state").read_text() == "old"
    assert names(tmp_path) == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("code", "phrase", "exit_code"),
    [
        (errno.ENOSPC, "no space left", ExitCode.DISK),
        (errno.EFBIG, "larger than a file", ExitCode.DISK),
        (errno.EROFS, "cannot be written", ExitCode.USER),
    ],
)
def test_disk_faults_are_told_with_path_and_exit_code(tmp_path: Path, code: int, phrase: str, exit_code: int) -> None:
    with pytest.raises(UserError, match=phrase) as caught, files.told_as_user_error(tmp_path / "x"):
        raise OSError(code, os.strerror(code))
    assert caught.value.exit_code == exit_code
    assert str(tmp_path / "x") in str(caught.value)


def test_a_full_disk_leaves_earlier_files_whole() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(UserError, match="no space left"), files.told_as_user_error(full):
        full.write_bytes(b"x" * 8192)


def test_other_faults_keep_their_own_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.told_as_user_error(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_a_folder_that_cannot_be_made_is_named_with_its_purpose(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output_dir .*file.*cannot be written"):
        files.ensure_writable(tmp_path / "file" / "run", "output_dir")
