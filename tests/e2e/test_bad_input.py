"""Every mistake a user can make is told with its place, its rule and its mend; exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from projects import Project

from simpletuner.cli.main import main


def first_clip(project: Project) -> Path:
    return sorted(project.clips.glob("*.mp4"))[0]


def missing_folder(project: Project) -> None:
    shutil.rmtree(project.clips)


def empty_folder(project: Project) -> None:
    shutil.rmtree(project.clips)
    project.clips.mkdir()


def broken_json(project: Project) -> None:
    project.config.write_text('{\n  "model_family": "ltxvideo",\n  "lora_rank": ,\n}\n')


def unknown_option(project: Project) -> None:
    project.change_config(lora_rnak=4)


def unknown_dataset_key(project: Project) -> None:
    project.change_dataset(instance_data_dri="x")


def missing_dataset_file(project: Project) -> None:
    project.datasets.unlink()


def missing_model(project: Project) -> None:
    project.change_config(pretrained_model_name_or_path=str(project.folder / "no-such-model"))


def half_a_model(project: Project) -> None:
    folder = project.folder / "half"
    shutil.copytree(json.loads(project.config.read_text())["pretrained_model_name_or_path"], folder)
    shutil.rmtree(folder / "vae")
    project.change_config(pretrained_model_name_or_path=str(folder))


def output_is_a_file(project: Project) -> None:
    project.output.write_text("in the way")


def too_few_for_a_batch(project: Project) -> None:
    project.change_config(train_batch_size=8)


def clips_too_short(project: Project) -> None:
    project.change_dataset(video={"num_frames": 125, "min_frames": 125})


def clips_too_small(project: Project) -> None:
    project.change_dataset(minimum_image_size=256)


def no_length(project: Project) -> None:
    project.change_config(max_train_steps=0)


def planned_feature(project: Project) -> None:
    project.change_config(ramtorch=True)


def wrong_type(project: Project) -> None:
    project.change_config(learning_rate="fast")


@pytest.mark.parametrize(
    ("spoil", "phrases"),
    [
        (missing_folder, ["instance_data_dir", "clips"]),
        (empty_folder, ["no samples detected in dataset"]),
        (broken_json, ["config.json:3"]),
        (unknown_option, ["lora_rnak", "lora_rank"]),
        (unknown_dataset_key, ["instance_data_dri", "instance_data_dir"]),
        (missing_dataset_file, ["multidatabackend.json"]),
        (missing_model, ["no-such-model"]),
        (half_a_model, ["vae"]),
        (output_is_a_file, ["output"]),
        (too_few_for_a_batch, ["repeats", "8"]),
        (clips_too_short, ["no samples detected in dataset", "125"]),
        (clips_too_small, ["no samples detected in dataset", "256"]),
        (no_length, ["max_train_steps", "num_train_epochs"]),
        (planned_feature, ["ramtorch"]),
        (wrong_type, ["learning_rate", "fast"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_mistake_is_told_and_nothing_is_trained(
    project: Project, capfd: pytest.CaptureFixture, spoil: Callable[[Project], None], phrases: list[str]
) -> None:
    spoil(project)
    code = main(project.arguments())
    captured = capfd.readouterr()
    told = " ".join((captured.out + captured.err).split())
    assert code == 2, told
    assert "Traceback" not in told
    for phrase in phrases:
        assert phrase in told, (phrase, told)
    assert not list(project.folder.rglob("checkpoint-*"))


def test_all_mistakes_are_told_at_once(project: Project, capfd: pytest.CaptureFixture) -> None:
    project.change_config(lora_rnak=4, learning_rate="fast", ramtorch=True, train_batch_size=0)
    assert main(project.arguments()) == 2
    told = capfd.readouterr().err
    for phrase in ("lora_rnak", "learning_rate", "ramtorch", "train_batch_size"):
        assert phrase in told


def test_bad_clips_are_left_out_with_reasons_and_the_rest_is_trained(
    project: Project, capfd: pytest.CaptureFixture
) -> None:
    good = first_clip(project).read_bytes()
    caption = "a red circle"
    for name, content in {
        "zero.mp4": b"",
        "cut.mp4": good[: len(good) // 3],
        "page.mp4": b"<!DOCTYPE html><html><body>404</body></html>",
    }.items():
        (project.clips / name).write_bytes(content)
        (project.clips / name).with_suffix(".txt").write_text(caption)
    (project.clips / "mute.mp4").write_bytes(good)  # no caption
    (project.clips / "empty.mp4").write_bytes(good)
    (project.clips / "empty.txt").write_text("\n \n")
    (project.clips / "latin.mp4").write_bytes(good)
    (project.clips / "latin.txt").write_bytes("ein schöner Kreis".encode("latin-1"))
    before = {path.name: path.read_bytes() for path in project.clips.iterdir()}
    assert main(project.arguments(max_train_steps=2)) == 0
    told = " ".join(capfd.readouterr().out.split())
    for name in ("zero.mp4", "cut.mp4", "page.mp4", "mute.mp4", "empty.mp4", "latin.mp4"):
        assert f"left out {name}" in told, name
    assert {path.name: path.read_bytes() for path in project.clips.iterdir()} == before


def test_a_checkpoint_of_another_rank_is_refused_before_anything_is_encoded(
    project: Project, capfd: pytest.CaptureFixture
) -> None:
    assert main(project.arguments(max_train_steps=3)) == 0
    capfd.readouterr()
    assert main(project.arguments(lora_rank=8)) == 2
    told = capfd.readouterr().err
    for phrase in ("checkpoint-3", "lora_rank", "4", "8"):
        assert phrase in told
