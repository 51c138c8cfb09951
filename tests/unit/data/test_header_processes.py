"""Headers read by processes: the same answers, and a crash or a hang costs one file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from simpletuner.data import header_processes, scan
from simpletuner.data.find import find_samples
from simpletuner.data.header_processes import PROGRAM, LocalHeader, NoProcessesError, read_in_processes
from simpletuner.data.headers import Media, read_header
from simpletuner.data.sample import DamagedMedia, MediaInfo, Unfit, UnreadMedia
from simpletuner.data.storage import LocalStorage

# What a process runs whose reader does `{what}` with files called so.
SPOILT = (
    "import os, sys, time, json; sys.path[:] = json.loads(sys.argv[1]); import simpletuner.data.headers as headers; "
    "read = headers.read_header; "
    "headers.read_header = lambda storage, file: ({what}) if 'trap' in file.path else read(storage, file); "
    "headers.serve()"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path]) -> Path:
    """Eight clips in two folders, one of them cut short, and one that is a text."""
    root = tmp_path_factory.mktemp("clips")
    (root / "deep ö").mkdir()
    first = write_clip(root / "0.mp4", frames=9)
    for number in range(1, 8):
        shutil.copy(first, root / ("deep ö" if number % 2 else "") / f"{number}.mp4")
    (root / "2.mp4").write_bytes(first.read_bytes()[:700])
    (root / "4.mp4").write_text("no clip")
    return root


def headers_of(folder: Path) -> list[LocalHeader]:
    return [LocalHeader(folder, file) for file in LocalStorage(folder).list_files().files]


def facts(media: Media) -> object:
    return media if isinstance(media, MediaInfo) else (type(media), media.reason)


def test_processes_and_threads_answer_alike(folder: Path) -> None:
    headers = headers_of(folder)
    answers = dict(read_in_processes(headers, 2))
    here = {header: read_header(LocalStorage(header.root), header.file) for header in headers}
    assert {header: (facts(media), content) for header, (media, content) in answers.items()} == {
        header: (facts(media), content) for header, (media, content) in here.items()
    }
    assert sum(isinstance(media, DamagedMedia) for media, _ in answers.values()) == 1
    assert sum(isinstance(media, Unfit) for media, _ in answers.values()) == 2


@pytest.mark.parametrize(
    ("what", "told"), [("os.abort()", "ended the process that read it"), ("time.sleep(60)", "took longer than 1 s")]
)
def test_a_crash_or_a_hang_costs_one_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, told: str
) -> None:
    monkeypatch.setattr(header_processes, "LONGEST_READ_SECONDS", 1.0)
    clips = shutil.copytree(folder, tmp_path / "clips")
    (clips / "0.mp4").rename(clips / "trap.mp4")
    answers = {
        header.file.path: media
        for header, (media, _) in read_in_processes(headers_of(clips), 1, SPOILT.format(what=what))
    }
    assert len(answers) == 8
    assert [path for path, media in answers.items() if isinstance(media, UnreadMedia)] == ["trap.mp4"]
    assert told in answers["trap.mp4"].reason  # type: ignore[union-attr]
    assert sum(isinstance(media, MediaInfo) for media in answers.values()) == 5


def test_where_no_process_starts_nothing_is_lost(folder: Path) -> None:
    headers = headers_of(folder)
    with pytest.raises(NoProcessesError) as caught:
        list(read_in_processes(headers, 2, "raise SystemExit(3)"))
    assert sorted(header.file.path for header in caught.value.unread) == [header.file.path for header in headers]


def test_whoever_stops_listening_leaves_no_process_behind(folder: Path) -> None:
    reading = read_in_processes(headers_of(folder), 2)
    next(reading)
    reading.close()
    assert not [thread for thread in header_processes.threading.enumerate() if thread.name == "headers"]


@pytest.mark.parametrize("program", [PROGRAM, "raise SystemExit(3)"])
def test_a_long_scan_goes_to_processes(
    folder: Path, clip_dataset: Callable[..., object], monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """Also where they do not start."""
    from simpletuner.config.catalogs.families import FAMILIES

    asked: list[int] = []

    def read(headers: list[LocalHeader], processes: int) -> object:
        asked.append(len(headers))
        return read_in_processes(headers, processes, program)

    dataset = clip_dataset(folder, {"num_frames": 9, "min_frames": 9})

    def find() -> object:
        grid = FAMILIES["ltxvideo"].grid
        return find_samples([dataset], {"test": LocalStorage(folder)}, grid, workers=2, emit=lambda event: None)  # type: ignore[list-item]

    plain = find()
    monkeypatch.setattr(scan.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(scan, "TRIED_SECONDS", -1.0)
    monkeypatch.setattr(scan, "WORTH_PROCESSES_SECONDS", -1.0)
    monkeypatch.setattr(scan, "read_in_processes", read)
    assert find() == plain
    assert asked == [8]
