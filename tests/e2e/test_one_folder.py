"""What happens when a run folder is used again: nothing is mixed, nothing is lost, nothing is claimed."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest
from projects import Project
from safetensors.numpy import load_file

from simpletuner.cli.main import main

ADAPTER = "pytorch_lora_weights.safetensors"


@pytest.mark.slow
def test_a_fresh_start_in_a_used_folder_is_refused(project: Project, capfd: pytest.CaptureFixture) -> None:
    assert main(project.arguments()) == 0
    metrics = (project.output / "metrics.jsonl").read_bytes()
    capfd.readouterr()
    assert main(project.arguments(resume_from_checkpoint="none")) == 2
    assert "another output_dir" in capfd.readouterr().err
    assert main(project.arguments(resume_from_checkpoint="checkpoint-3")) == 2
    assert "checkpoint-6" in capfd.readouterr().err
    assert (project.output / "metrics.jsonl").read_bytes() == metrics


def test_the_checkpoint_just_saved_is_never_pruned(project: Project) -> None:
    other = project.folder / "other"
    assert main(project.arguments(checkpoints_total_limit=1, checkpoint_step_interval=1)) == 0
    assert [path.name for path in project.output.glob("checkpoint-*")] == ["checkpoint-6"]
    # Continuing elsewhere from an earlier copy saves there and leaves this folder alone.
    shutil.copytree(project.output / "checkpoint-6", other / "checkpoint-6")
    assert main(project.arguments(output_dir=other, checkpoints_total_limit=1, max_train_steps=8)) == 0
    assert [path.name for path in other.glob("checkpoint-*")] == ["checkpoint-8"]


@pytest.mark.slow
def test_a_missing_adapter_is_written_again_and_a_shorter_run_is_refused(
    project: Project, capfd: pytest.CaptureFixture
) -> None:
    assert main(project.arguments()) == 0
    before = (project.output / "checkpoint-6" / ADAPTER).read_bytes()
    (project.output / ADAPTER).unlink()
    assert main(project.arguments()) == 0
    assert (project.output / ADAPTER).exists()
    assert (project.output / "checkpoint-6" / ADAPTER).read_bytes() == before
    # A run that went on from an earlier end and died before its export leaves that end's file behind.
    shutil.copy(project.output / "checkpoint-3" / ADAPTER, project.output / ADAPTER)
    assert main(project.arguments()) == 0
    exported, last = (load_file(folder / ADAPTER) for folder in (project.output, project.output / "checkpoint-6"))
    assert all((exported[name] == last[name]).all() for name in last)
    capfd.readouterr()
    assert main(project.arguments(max_train_steps=4)) == 2
    assert "beyond the run's end" in capfd.readouterr().err


@pytest.mark.slow
def test_base_videos_are_made_once_and_again_when_the_prompt_changes(project: Project) -> None:
    videos = {
        "validation_disable": "false",
        "validation_resolution": "64x64",
        "validation_num_video_frames": 9,
        "validation_num_inference_steps": 1,
    }
    assert main(project.arguments(max_train_steps=2, validation_prompt="a red circle", **videos)) == 0
    base = next(project.output.rglob("base_*.mp4"))
    made = base.stat().st_mtime_ns
    assert main(project.arguments(max_train_steps=3, validation_prompt="a red circle", **videos)) == 0
    assert base.stat().st_mtime_ns == made
    assert main(project.arguments(max_train_steps=4, validation_prompt="a blue square", **videos)) == 0
    assert base.stat().st_mtime_ns > made


def test_ctrl_c_while_encoding_stops_at_once_and_keeps_what_is_done(project: Project) -> None:
    project.change_dataset(resolution=256)  # larger clips, so that encoding takes a moment
    with project.start() as process:
        deadline = time.monotonic() + 120
        while not list((project.folder / "cache" / "vae").glob("*.safetensors")):
            assert time.monotonic() < deadline, "no clip was encoded"
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert not list(project.output.glob("checkpoint-*"))
    assert not (project.output / "metrics.jsonl").exists() or project.metrics() == []
    lines = [json.loads(line) for line in (project.output / "journal.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "run_finished"
    assert lines[-1]["outcome"] == "stopped"
