"""From folders to samples: what is listed, what is left out and why, and what the story says."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import pytest
from PIL import Image

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.find import FoundSamples, find_samples
from simpletuner.data.listing import list_media
from simpletuner.data.notes import summarize_reasons
from simpletuner.data.sample import BucketKey, LeftOut
from simpletuner.data.storage import LocalStorage, open_storage

Write = Callable[..., Path]
Dataset = Callable[..., ClipDataset]


@dataclass(frozen=True)
class Raster:
    spatial: int = 32
    temporal: int = 8


def find(*datasets: ClipDataset) -> FoundSamples:
    storages = {dataset.id: open_storage(dataset) for dataset in datasets}
    return find_samples(datasets, storages, Raster(), workers=2, emit=lambda event: None)


def reasons(found: FoundSamples) -> dict[str, str]:
    return {item.path: item.reason for item in found.left_out}


def test_good_clips_go_on_beside_bad_ones(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write_clip(tmp_path / "b.mp4")
    write_clip(tmp_path / "deep" / "er" / "a.MKV")
    write_clip(tmp_path / "short.mp4", frames=24)
    write_clip(tmp_path / "small.mp4", width=64, height=48)
    write_clip(tmp_path / "uncaptioned.mp4")
    (tmp_path / "empty.mp4").touch()
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.mp4", format="PNG")
    for name in ("b", "deep/er/a", "short", "small", "empty", "picture"):
        (tmp_path / f"{name}.txt").write_text(f"caption of {name}")
    found = find(clip_dataset(tmp_path, video={"num_frames": 25}, caption_strategy="textfile", minimum_image_size=96))
    assert [sample.name for sample in found.samples] == ["test/b.mp4", "test/deep/er/a.MKV"]
    assert found.samples[1].captions == ("caption of deep/er/a",)
    assert found.samples[0].bucket == BucketKey(128, 96, 25)
    assert reasons(found) == {
        "empty.mp4": "empty file (0 bytes)",
        "picture.mp4": "a still picture in a data set with dataset_type 'video'",
        "short.mp4": "too short: 24 frames, needs 25",
        "small.mp4": "too small: 64x48 px, minimum_image_size asks for edges of 96 px",
        "uncaptioned.mp4": "caption file 'uncaptioned.txt' is missing",
    }


def test_what_is_passed_over_is_counted(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    write_clip(tmp_path / "a.mp4", frames=9)
    for name in ("._a.mp4", ".hidden.mp4", "b.mp4.part", "c.crdownload", "d.png", "e.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.mp4").write_bytes(b"x")
    listing = list_media(LocalStorage(tmp_path), clip_dataset(tmp_path))
    assert [file.path for file in listing.files] == ["a.mp4"]
    assert listing.ignored == {
        "hidden files": 2, "unfinished downloads (.part)": 1, "unfinished downloads (.crdownload)": 1, "image files": 1,
    }  # fmt: skip
    notes = find(clip_dataset(tmp_path, video={"num_frames": 9})).notes
    assert any("ignored: 2 hidden files, 1 image files" in note for note in notes)


def test_images_are_clips_of_one_frame(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    Image.new("RGB", (128, 96)).save(tmp_path / "a.PNG")
    write_clip(tmp_path / "b.mp4", frames=3)
    found = find(clip_dataset(tmp_path, dataset_type="image"))
    assert [(sample.path, sample.bucket) for sample in found.samples] == [("a.PNG", BucketKey(128, 96, 1))]


def test_link_loops_end_and_links_are_followed(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    write_clip(elsewhere / "b.mp4", frames=9)
    (data / "loop").symlink_to(data)
    (data / "more").symlink_to(elsewhere)
    (data / "gone.mp4").symlink_to(tmp_path / "nothing")
    os.mkfifo(data / "pipe.mp4")
    found = find(clip_dataset(data, video={"num_frames": 9}))
    assert [sample.path for sample in found.samples] == ["more/b.mp4"]
    assert reasons(found)["gone.mp4"] == "the link points to nothing"
    assert "not an ordinary file" in reasons(found)["pipe.mp4"]


def test_strange_names(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    clip = write_clip(tmp_path / "-rf $(x) \n'猫'.mp4", frames=9)
    (tmp_path / os.fsdecode(b"bad\xff.mp4")).write_bytes(clip.read_bytes())
    found = find(clip_dataset(tmp_path, video={"num_frames": 9}))
    assert [sample.path for sample in found.samples] == ["-rf $(x) \n'猫'.mp4"]
    assert reasons(found) == {"bad\\xff.mp4": "the file name is not UTF-8; rename it"}


def test_names_with_control_characters_are_shown_on_one_line(
    tmp_path: Path, write_clip: Write, clip_dataset: Dataset
) -> None:
    write_clip(tmp_path / "a\nb\x1b[31m.mp4", frames=9)
    write_clip(tmp_path / "good\n.mp4", frames=9)
    (tmp_path / "good\n.txt").write_text("a caption")
    found = find(clip_dataset(tmp_path, video={"num_frames": 9}, caption_strategy="textfile", resolution=128))
    (item,) = found.left_out
    assert item.path == "a\nb\x1b[31m.mp4"
    assert item.shown_path == r"a\nb\x1b[31m.mp4"
    assert item.reason == r"caption file 'a\nb\x1b[31m.txt' is missing"
    assert summarize_reasons(found.left_out) == (f"{item.shown_path}: {item.reason}",)
    assert any(r"most of all good\n.mp4" in note for note in found.notes)
    assert all(note.isprintable() for note in found.notes)


def test_missing_folders_are_all_told_at_once(tmp_path: Path, clip_dataset: Dataset) -> None:
    with pytest.raises(UserError) as caught:
        find(clip_dataset(tmp_path / "x", id="one"), clip_dataset(tmp_path / "y", id="two"))
    assert len(caught.value.problems) == 2
    assert "data set 'one': the folder" in str(caught.value)
    assert "does not exist" in caught.value.problems[1].what


def test_an_empty_folder(tmp_path: Path, clip_dataset: Dataset) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"dataset 'test': no samples detected in dataset.*1 image files ignored"):
        find(clip_dataset(tmp_path))


def test_nothing_usable_tells_why(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    for number in range(3):
        write_clip(tmp_path / f"{number}.mp4", frames=9 + number)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(UserError) as caught:
        find(clip_dataset(tmp_path, video={"num_frames": 25}))
    assert "no samples detected in dataset. 4 files, 0 usable" in str(caught.value)
    assert "3 files such as 0.mp4: too short: 9 frames, needs 25" in str(caught.value)
    assert "empty.mp4: empty file (0 bytes)" in str(caught.value)


def test_reasons_of_one_kind_make_one_line() -> None:
    items = [LeftOut("d", f"{n}.mp4", f"too short: {n} frames, needs 25") for n in range(5)]
    items.append(LeftOut("d", "x.mp4", "empty file (0 bytes)"))
    assert summarize_reasons(items) == (
        "5 files such as 0.mp4: too short: 0 frames, needs 25", "x.mp4: empty file (0 bytes)",
    )  # fmt: skip


def test_shapes_to_choose_from_must_be_given(tmp_path: Path, clip_dataset: Dataset) -> None:
    with pytest.raises(UserError, match="crop_aspect 'closest' but no crop_aspect_buckets"):
        find(clip_dataset(tmp_path, crop=True, crop_aspect="closest"))


def test_one_folder_in_two_data_sets(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    write_clip(tmp_path / "a.mp4", frames=33)
    found = find(
        clip_dataset(tmp_path, video={"num_frames": 9}, id="short", repeats=2),
        clip_dataset(tmp_path, video={"num_frames": 33}, id="long"),
    )
    assert [(sample.name, sample.frames.num_frames, sample.repeats) for sample in found.samples] == [
        ("short/a.mp4", 9, 3), ("long/a.mp4", 33, 1),
    ]  # fmt: skip


def test_the_story_says_what_was_changed(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    write_clip(tmp_path / "slow.mp4", rate=8, frames=49)
    write_clip(tmp_path / "fast.mp4", rate=50, frames=130)
    rules = {"num_frames": 60, "bucket_strategy": "resolution_frames", "frame_interval": 12}
    told = "\n".join(find(clip_dataset(tmp_path, video=rules, framerate=25.0, resolution=112)).notes)
    assert "test: resolution 112 (pixel) is an edge of 112 px, trained as 128 (multiples of 32)" in told
    assert "60 frames are trained as 57 (the model takes 8k+1)" in told
    assert "2 clips of 8 to 50 fps are resampled to 25 fps at true speed; 1 of them repeat frames" in told
    assert "2 files are enlarged" in told
    kept = "\n".join(find(clip_dataset(tmp_path, video={"num_frames": 33})).notes)
    assert "clips keep their own frame rates, 8 to 50 fps, and true speed" in kept


def test_rates_travel_with_the_samples(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    write_clip(tmp_path / "a.mp4", rate=8)
    write_clip(tmp_path / "b.mp4", rate=50)
    own = find(clip_dataset(tmp_path, video={"num_frames": 9}))
    assert [sample.frames.frame_rate for sample in own.samples] == [8.0, 50.0]
    forced = find(clip_dataset(tmp_path, video={"num_frames": 9}, framerate=25.0))
    assert [sample.frames.frame_rate for sample in forced.samples] == [25.0, 25.0]


def test_kinds_of_pictures_are_noted_once_per_file(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    def interlaced(stream: object) -> None:
        stream.codec_context.flags |= av.codec.context.Flags.interlaced_dct

    options = {"x264-params": "tff=1", "preset": "ultrafast"}
    write_clip(tmp_path / "combed.mp4", frames=33, options=options, prepare=interlaced)
    write_clip(tmp_path / "uneven.mkv", stamps_ms=[*range(0, 400, 40), *range(400, 1400, 100)])
    write_clip(tmp_path / "plain.mp4", frames=33)
    rules = {"num_frames": 9, "frame_sampling": "split"}
    told = find(clip_dataset(tmp_path, video=rules, framerate=25.0)).notes
    assert [note for note in told if "interlaced" in note] == [
        "test: 1 clip is interlaced: moving edges have combs, which are trained too; deinterlace the files first "
        "(such as combed.mp4)"
    ]
    assert [note for note in told if "variable" in note] == [
        "test: 1 clip is of variable frame rate: resampled evenly by their time stamps (such as uneven.mkv)"
    ]


def test_a_scene_left_out_is_told_with_its_time() -> None:
    item = LeftOut("d", "a\n.mp4", "too short: 3 frames, needs 9", part="2.00 to 2.12 s")
    assert summarize_reasons([item]) == (r"a\n.mp4 (2.00 to 2.12 s): too short: 3 frames, needs 9",)
