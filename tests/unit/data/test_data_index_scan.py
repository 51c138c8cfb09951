"""Scanning: only what is new is opened, a killed scan goes on, tables replace headers, and nothing heavy is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.decode import decode_sample
from simpletuner.data.find import FoundSamples, find_samples
from simpletuner.data.index import open_index
from simpletuner.data.listing import choose_files, list_media
from simpletuner.data.sample import MediaInfo, ShortMedia, Unfit, UnreadMedia, UnusableMedia
from simpletuner.data.scan import Shelf, scan
from simpletuner.data.storage import Listing, LocalStorage, StoredFile, TableRow
from simpletuner.events.types import Event, StageAdvanced, StageFinished, StageStarted

Write = Callable[..., Path]
Dataset = Callable[..., ClipDataset]


@dataclass(frozen=True)
class Raster:
    spatial: int = 32
    temporal: int = 8


@dataclass
class CountingStorage:
    """A folder that counts what is opened; fulfils `Storage`. `is_far` hides that it is on this machine."""

    inner: LocalStorage
    is_far: bool = False
    opened: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    failing: set[str] = field(default_factory=set)

    @property
    def place(self) -> str:
        return self.inner.place

    def list_files(self) -> Listing:
        return self.inner.list_files()

    def stat(self, path: str) -> StoredFile:
        self.asked[path] += 1
        return self.inner.stat(path)

    def open(self, path: str) -> BinaryIO:
        self.opened[path] += 1
        if path in self.failing:
            raise OSError(5, "Input/output error")
        return self.inner.open(path)

    def local_path(self, path: str) -> Path | None:
        return None if self.is_far else self.inner.local_path(path)


@dataclass
class Scene:
    """A folder of clips, its data set, and what a scan of it opened and told."""

    data: Path
    dataset: ClipDataset
    storage: CountingStorage
    events: list[Event] = field(default_factory=list)

    def find(self) -> FoundSamples:
        self.storage.opened.clear()
        self.events.clear()
        datasets, storages = [self.dataset], {self.dataset.id: self.storage}
        return find_samples(datasets, storages, Raster(), workers=3, emit=self.events.append)


@pytest.fixture
def scene(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> Scene:
    """Three good clips with captions, one damaged one; the clips' storage is far away."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b", "c"):
        write_clip(data / f"{name}.mp4", frames=9)
        (data / f"{name}.txt").write_text(f"caption {name}")
    (data / "d.mp4").write_bytes((data / "a.mp4").read_bytes()[:500])
    dataset = clip_dataset(data, video={"num_frames": 9}, caption_strategy="textfile",
                           cache_dir_vae=str(tmp_path / "cache"))  # fmt: skip
    return Scene(data, dataset, CountingStorage(LocalStorage(data), is_far=True))


def test_a_second_scan_opens_nothing_and_finds_the_same(scene: Scene) -> None:
    first = scene.find()
    assert set(scene.storage.opened) == {"a.mp4", "b.mp4", "c.mp4", "d.mp4", "a.txt", "b.txt", "c.txt"}
    assert [type(event) for event in scene.events] == [StageStarted, *[StageAdvanced] * 4, StageFinished]
    assert (scene.events[0].total, scene.events[0].done, scene.events[-1].summary) == (4, 0, "1 unusable")
    second = scene.find()
    assert second == first
    assert [sample.captions for sample in second.samples] == [("caption a",), ("caption b",), ("caption c",)]
    assert [(item.path, item.damaged) for item in second.left_out] == [("d.mp4", True)]
    assert not scene.storage.opened
    assert (scene.events[0].total, scene.events[0].done) == (4, 4)
    assert scene.events[-1].summary == "4 remembered, 1 unusable"


def test_only_what_changed_is_read_again(scene: Scene, write_clip: Write) -> None:
    scene.find()
    write_clip(scene.data / "b.mp4", frames=17)
    write_clip(scene.data / "e.mp4", frames=9)
    (scene.data / "e.txt").write_text("caption e")
    (scene.data / "a.txt").write_text("another a")
    (scene.data / "c.mp4").unlink()
    found = scene.find()
    assert set(scene.storage.opened) == {"b.mp4", "e.mp4", "e.txt", "a.txt"}
    assert [(sample.path, sample.info.num_frames) for sample in found.samples] == [
        ("a.mp4", 9), ("b.mp4", 17), ("e.mp4", 9),
    ]  # fmt: skip
    assert found.samples[0].captions == ("another a",)
    with open_index(scene.dataset) as index:  # c.mp4 is forgotten
        assert set(index.find_contents(["a.mp4", "c.mp4"])) <= {"a.mp4"}


def test_a_copied_folder_is_not_read_again(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    """Time stamps differ, contents do not; the same size with another content is noticed."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b"):
        write_clip(data / f"{name}.mp4", frames=9)
    dataset = clip_dataset(data, video={"num_frames": 9}, cache_dir_vae=str(tmp_path / "cache"))
    scene = Scene(data, dataset, CountingStorage(LocalStorage(data)))
    scene.find()
    for name in ("a", "b"):
        os.utime(data / f"{name}.mp4", ns=(5, 5))
    content = bytearray((data / "b.mp4").read_bytes())
    content[-20] ^= 255
    (data / "b.mp4").write_bytes(bytes(content))
    found = scene.find()
    assert set(scene.storage.opened) == {"b.mp4"}
    assert {sample.path: sample.info.version for sample in found.samples}["a.mp4"] == "5"
    decode_sample(scene.storage, found.samples[0])  # the new version text is the one that counts
    scene.find()
    assert not scene.storage.opened


def test_trouble_of_the_moment_is_tried_again(scene: Scene) -> None:
    scene.storage.failing = {"b.mp4"}
    assert {item.path: item.reason for item in scene.find().left_out}["b.mp4"] == (
        "cannot be reached (Input/output error)"
    )
    scene.storage.failing = set()
    assert [sample.path for sample in scene.find().samples] == ["a.mp4", "b.mp4", "c.mp4"]
    assert set(scene.storage.opened) == {"b.mp4", "b.txt"}


def test_far_files_are_not_asked_for_what_the_listing_says(scene: Scene) -> None:
    scene.find()
    assert set(scene.storage.asked) <= {"d.mp4"}  # asked once more for the reason why it cannot be opened


def test_an_index_that_cannot_be_written_is_told(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    scene.dataset = scene.dataset.model_copy(update={"cache_dir_vae": str(tmp_path / "file" / "cache")})
    found = scene.find()
    assert len(found.samples) == 3
    assert sum("headers are read again at the next start" in note for note in found.notes) == 1


def test_a_damaged_index_costs_a_scan_and_a_note(scene: Scene, tmp_path: Path) -> None:
    first = scene.find()
    (tmp_path / "cache" / "index.sqlite").write_bytes(b"junk" * 3000)
    second = scene.find()
    assert second.samples == first.samples
    assert any("damaged or not ours" in note for note in second.notes)
    assert scene.find() == first


def test_two_data_sets_over_one_folder_read_it_once(scene: Scene, tmp_path: Path) -> None:
    other = scene.dataset.model_copy(update={"id": "other", "cache_dir_vae": str(tmp_path / "cache2")})
    storages = {"test": scene.storage, "other": scene.storage}
    found = find_samples([scene.dataset, other], storages, Raster(), workers=2, emit=scene.events.append)
    assert [sample.name for sample in found.samples] == [
        f"{name}/{clip}.mp4" for name in ("test", "other") for clip in "abc"
    ]  # fmt: skip
    opened = sum(scene.storage.opened[f"{name}.mp4"] for name in "abc")
    scene.storage.opened.clear()
    find_samples([scene.dataset], storages, Raster(), workers=2, emit=scene.events.append)
    find_samples([other], storages, Raster(), workers=2, emit=scene.events.append)
    assert not scene.storage.opened
    shutil.rmtree(tmp_path / "cache")
    scene.find()
    assert sum(scene.storage.opened[f"{name}.mp4"] for name in "abc") == opened  # what one scan of one set opens


def test_a_third_data_set_is_told_what_another_one_knows(scene: Scene, tmp_path: Path) -> None:
    scene.find()
    other = scene.dataset.model_copy(update={"id": "other", "cache_dir_vae": str(tmp_path / "cache2")})
    scene.storage.opened.clear()
    storages = {"test": scene.storage, "other": scene.storage}
    find_samples([scene.dataset, other], storages, Raster(), workers=2, emit=scene.events.append)
    assert not any(name.endswith(".mp4") for name in scene.storage.opened)


def test_the_truth_about_a_lying_header_is_planned_with(scene: Scene) -> None:
    found = scene.find()
    sample = found.samples[0]
    lying = replace(sample.info, num_frames=25, duration_seconds=1.0)
    planned = replace(sample, info=lying, frames=replace(sample.frames, num_frames=17))
    with pytest.raises(ShortMedia, match="declares 25 frames") as caught:
        decode_sample(scene.storage, planned)
    assert (caught.value.num_frames, caught.value.duration_seconds) == (9, pytest.approx(0.36))
    file = StoredFile(sample.path, sample.info.size_bytes, sample.info.version)
    with open_index(scene.dataset) as index:
        index.save_media([(file, lying, "")])
        index.note_true_length(file, caught.value.num_frames, caught.value.duration_seconds)
    assert scene.find().samples[0].info.num_frames == 9


# Tables -----------------------------------------------------------------------------------------


@dataclass
class Table:
    """Rows by path; fulfils `FactTable`."""

    rows: dict[str, TableRow]
    place: str = "table 'clips'"

    def facts(self, path: str) -> TableRow | None:
        return self.rows.get(path)


def _scanned(scene: Scene, rows: dict[str, TableRow], **changes: Any) -> Shelf:
    dataset = scene.dataset.model_copy(update=changes)
    scene.storage.opened.clear()
    with open_index(dataset) as index:
        shelf = Shelf(dataset, scene.storage, list_media(scene.storage, dataset), Table(rows), index)
        scan([shelf], workers=2, emit=scene.events.append)
    return shelf


def test_a_complete_row_replaces_the_header(scene: Scene) -> None:
    rows = {
        "a.mp4": TableRow((), 640, 480, 100, 25.0),
        "b.mp4": TableRow((), 640, 480, None, 25.0),
        "d.mp4": TableRow((), 320, 240, 50, 12.5),
    }
    shelf = _scanned(scene, rows, metadata_backend="parquet")
    assert set(scene.storage.opened) == {"b.mp4", "c.mp4"}
    a, d = shelf.media["a.mp4"], shelf.media["d.mp4"]
    assert isinstance(a, MediaInfo)
    assert isinstance(d, MediaInfo)
    assert (a.width, a.height, a.num_frames, a.frame_rate, a.duration_seconds) == (640, 480, 100, 25.0, 4.0)
    assert d.duration_seconds == 4.0
    assert a.version == scene.storage.stat("a.mp4").version


def test_a_table_for_captions_only_replaces_nothing(scene: Scene) -> None:
    shelf = _scanned(scene, {"a.mp4": TableRow((), 640, 480, 100, 25.0)})
    assert shelf.media["a.mp4"] == replace(shelf.media["a.mp4"], width=128, height=96, num_frames=9)


def test_decoding_finds_out_a_table_that_is_wrong(scene: Scene) -> None:
    sample = scene.find().samples[0]
    with pytest.raises(UnusableMedia, match=r"a picture is 128x96 px, but 96x96 was planned"):
        decode_sample(scene.storage, replace(sample, info=replace(sample.info, width=96)))
    scaled = replace(sample, info=replace(sample.info, width=256, height=192))  # the shape is right
    assert decode_sample(scene.storage, scaled).shape == (9, 96, 128, 3)


# Choice of files --------------------------------------------------------------------------------


def test_a_fixed_part_of_the_files() -> None:
    files = [StoredFile(f"{number:03}.mp4", 1, "1") for number in range(200)]
    chosen = choose_files(files, 50, "set")
    assert len(chosen) == 50
    assert list(chosen) == sorted(chosen, key=lambda file: file.path)
    assert choose_files(files, 50, "set") == chosen
    assert choose_files(files, 50, "other") != chosen
    assert set(choose_files(files, 20, "set")) < set(chosen)
    later = choose_files([*files, StoredFile("new.mp4", 1, "1")], 50, "set")
    assert len(set(chosen) - set(later)) <= 1
    assert choose_files(files, 500, "set") == files
    assert choose_files(files, None, "set") == files
    halves = [sum(file.path < "100" for file in choose_files(files, 50, f"set {number}")) for number in range(40)]
    assert 800 < sum(halves) < 1200  # all files alike: 1000 of 2000 expected


def test_max_num_samples_reads_only_the_chosen(scene: Scene) -> None:
    scene.dataset = scene.dataset.model_copy(update={"max_num_samples": 2})
    found = scene.find()
    assert len(found.samples) + len(found.left_out) == 2
    assert sum(name.endswith(".mp4") for name in scene.storage.opened) == 2
    assert "test: max_num_samples uses 2 of 4 files, always the same" in found.notes


def test_an_enlargement_limit(scene: Scene) -> None:
    """128x96 to 128x96 at most; 160x128 is 1.67 times the area."""
    scene.dataset = scene.dataset.model_copy(update={"max_upscale_threshold": 0.0})
    assert len(scene.find().samples) == 3
    scene.dataset = scene.dataset.model_copy(update={"resolution": 128, "max_upscale_threshold": 0.6})
    with pytest.raises(UserError, match="128x96 px trained as 160x128 grows by 67% in area, max_upscale_threshold"):
        scene.find()
    scene.dataset = scene.dataset.model_copy(update={"max_upscale_threshold": 0.7})
    assert len(scene.find().samples) == 3


# Processes --------------------------------------------------------------------------------------

FIND = """
import json, sys
from pathlib import Path
from simpletuner.config.catalogs.families import Grid
from simpletuner.config.dataset import ClipDataset, VideoRules
from simpletuner.data.find import find_samples
from simpletuner.data.storage import LocalStorage
data, cache = sys.argv[1:3]
dataset = ClipDataset(id="test", instance_data_dir=data, video=VideoRules(num_frames=9), caption_strategy="textfile",
                      resolution=96, resolution_type="pixel", cache_dir_vae=cache)
def tell(event):
    sys.stdout.write(type(event).__name__ + "\\n")
    sys.stdout.flush()
found = find_samples([dataset], {"test": LocalStorage(Path(data))}, Grid(spatial=32, temporal=8, channels=128),
                     workers=1, emit=tell)
heavy = [name for name in ("av", "torch", "numpy", "PIL", "scenedetect") if name in sys.modules]
sys.stdout.write(json.dumps([len(found.samples), heavy]))
"""


def _find_in_process(scene: Scene) -> list[Any]:
    arguments = [sys.executable, "-c", FIND, str(scene.data), str(scene.dataset.cache_dir_vae)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_heavy_is_loaded_for_what_is_known(scene: Scene) -> None:
    scene.find()
    assert _find_in_process(scene) == [3, []]


def test_a_killed_scan_goes_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read in the two seconds before a batch is lost, the rest is kept."""
    monkeypatch.setattr("simpletuner.data.scan.SAVED_AT_ONCE", 1)
    for number in range(60):
        os.link(scene.data / "a.mp4", scene.data / f"more{number:02}.mp4")
    script = "import simpletuner.data.scan\nsimpletuner.data.scan.SAVED_AT_ONCE = 1\n" + FIND
    arguments = [sys.executable, "-c", script, str(scene.data), str(scene.dataset.cache_dir_vae)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
        process.kill()
    scene.find()
    started = scene.events[0]
    assert isinstance(started, StageStarted)
    assert 15 <= started.done < 64
    assert sum(name.endswith(".mp4") for name in scene.storage.opened) == 64 - started.done


def test_unread_media_are_unusable_media() -> None:
    assert issubclass(UnreadMedia, UnusableMedia)
    assert issubclass(ShortMedia, Unfit)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of this process's memory from /proc")
def test_a_hundred_thousand_known_files_take_little_memory(tmp_path: Path) -> None:
    """Clips and captions of 100 bytes, headers put into the index by hand; for the time: benchmarks/data_scale.py."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    for folder in range(100):
        (data / f"{folder:02}").mkdir(parents=True)
        for number in range(1000):
            path = data / f"{folder:02}" / f"{number}.mp4"
            path.write_bytes(b"x" * 100)
            path.with_suffix(".txt").write_text(f"A person walks along street {number} in the evening light.")
    dataset = ClipDataset(id="test", cache_dir_vae=str(cache))
    files = [file for file in LocalStorage(data).list_files().files if file.path.endswith(".mp4")]
    infos = [MediaInfo("video", 128, 96, 25.0, 9, 0.36, 0, 1.0, "h264", 100, file.version) for file in files]
    with open_index(dataset) as index:
        index.save_media([(file, info, "") for file, info in zip(files, infos, strict=True)])
    # Not getrusage: that counts what this process held when it started the other one.
    script = FIND + "\nsys.stdout.write(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0].rjust(12))"
    for _ in range(2):  # the second one knows the captions as well
        done = subprocess.run([sys.executable, "-c", script, str(data), str(cache)], capture_output=True, text=True,
                              check=True)  # fmt: skip
    answer, _, peak_kib = done.stdout.splitlines()[-1].rpartition(" ")
    assert json.loads(answer) == [100_000, []]
    assert int(peak_kib) < 500_000
