"""Validation through the command line: previews, first frames of clips, a base that is made once, the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from projects import Project

from simpletuner.cli.main import main
from simpletuner.events.sinks.journal import read_journal
from simpletuner.validation.video_file import read_video

SHOWN: dict[str, Any] = {
    "validation_disable": "false", "validation_prompt": "a red circle moves over a blue lake",
    "validation_resolution": "64x64", "validation_num_video_frames": 9, "validation_num_inference_steps": 4,
    "validation_step_interval": 0,
}  # fmt: skip


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(folder) if event["kind"] == kind]


@pytest.mark.slow
def test_previews_pictures_and_a_base_that_is_kept(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"validation_preview": "true", "validation_preview_steps": 2, "validation_using_datasets": "true",
            "validation_stitch_input_location": "left", "num_validation_images": 2}  # fmt: skip
    assert main(project.arguments(max_train_steps=2, **SHOWN, **more)) == 0
    videos = events(project.output, "video_generated")
    prompts = {event["nickname"] for event in videos}
    assert len(prompts) == 5  # the prompt, and four clips
    assert [event["weights"] for event in videos] == ["base"] * 10 + ["adapter"] * 10
    assert {event["number"] for event in videos} == {1, 2}
    assert all({"flicker", "motion", "sharpness", "colourfulness"} <= event["measures"].keys() for event in videos)
    assert all("likeness" in event["measures"] for event in videos[10:])
    assert read_video(Path(videos[-1]["path"]))[0].shape == (9, 64, 128, 3)  # the picture on the left
    previews = events(project.output, "preview_generated")
    assert [event["inference_step"] for event in previews] == [2, 4] * 20
    assert len(list((project.output / "validation_previews").iterdir())) == 20  # of the last validation
    assert (project.output / "preview_map.safetensors").is_file()
    assert (project.output / "gallery.html").is_file()

    # Another prompt costs one base video; those that were made are kept.
    library = project.folder / "library.json"
    library.write_text('{"a dog!": "a dog runs through tall grass towards the camera"}')
    again = SHOWN | {"user_prompt_library": library, "resume_from_checkpoint": "latest"}
    assert main(project.arguments(max_train_steps=3, **again)) == 0
    newest = events(project.output, "video_generated")[20:]
    assert [(event["weights"], event["nickname"]) for event in newest] == [
        ("base", "a_dog"), ("adapter", "validation"), ("adapter", "a_dog")
    ]  # fmt: skip

    for page in ("report.html", "gallery.html"):
        (project.output / page).unlink()
    capsys.readouterr()
    assert main(["report", str(project.output)]) == 0
    assert capsys.readouterr().out.strip() == str((project.output / "report.html").resolve())
    assert (project.output / "gallery.html").is_file()


def test_a_folder_that_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_further_adapter_is_shown_beside_what_is_trained(project: Project) -> None:
    first = project.folder / "first"
    assert main(project.arguments(output_dir=first, max_train_steps=2, learning_rate=3e-2)) == 0
    more = {"validation_adapter_path": first / "pytorch_lora_weights.safetensors", "validation_adapter_name": "guest",
            "validation_adapter_mode": "comparison", "disable_benchmark": "true"}  # fmt: skip
    assert main(project.arguments(max_train_steps=1, learning_rate=1e-6, **SHOWN, **more)) == 0
    shown = {
        event["nickname"]: read_video(Path(event["path"]))[0] for event in events(project.output, "video_generated")
    }
    assert list(shown) == ["validation", "validation_with_guest"]
    assert (shown["validation"] != shown["validation_with_guest"]).any()


@pytest.mark.slow
def test_a_command_validates_in_place_of_the_program(project: Project) -> None:
    said = project.folder / "said"
    script = project.folder / "look.sh"
    script.write_text(f'ls "$1"/pytorch_lora_weights.safetensors && echo "$2" >> {said}\n[ "$2" != 2 ]\n')
    more = {"validation_disable": "false", "validation_method": "external-script", "validation_step_interval": 1,
            "validation_external_script": f"sh {script} {{local_checkpoint_path}} {{global_step}}"}  # fmt: skip
    assert main(project.arguments(max_train_steps=3, checkpoint_step_interval=3, **more)) == 0
    assert said.read_text().split() == ["1", "2", "3"]
    faults = [event["text"] for event in events(project.output, "noticed") if event["severity"] == "error"]
    assert len(faults) == 1  # the second one fails, and training goes on
    assert "ended with code 1" in faults[0]
