"""`simpletuner train` from clips to adapter, as a user meets it: through the command line."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from projects import Project
from safetensors import safe_open
from safetensors.torch import load_file

from simpletuner.cli.main import main
from simpletuner.events.sinks.journal import read_journal

ADAPTER = "pytorch_lora_weights.safetensors"


def same_adapter(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_adapter_checkpoints_metrics_and_videos(project: Project, capfd: pytest.CaptureFixture) -> None:
    code = main(
        project.arguments(
            validation_disable="false",
            validation_prompt="a red circle moves to the right",
            validation_resolution="64x64",
            validation_num_video_frames=9,
            validation_num_inference_steps=2,
            modelspec_comment="after {current_step} steps",
        )
    )
    told = capfd.readouterr().out
    assert code == 0
    output = project.output
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}
    assert same_adapter(output / ADAPTER, output / "checkpoint-6" / ADAPTER)
    assert [line["step"] for line in project.metrics()] == [1, 2, 3, 4, 5, 6]
    videos = sorted(path.name for path in output.rglob("*.mp4"))
    assert len(videos) == 2
    assert videos[0].startswith("base_")
    assert videos[1].startswith("step_6_")
    assert (output / "contact_sheet.png").stat().st_size > 0
    assert (output / "report.html").stat().st_size > 0
    document = json.loads((output / "resolved_config.json").read_text())
    assert document["options"]["adapter"]["lora_rank"] == {
        "value": 4,
        "origin": document["options"]["adapter"]["lora_rank"]["origin"],
    }
    assert "config.json" in document["options"]["adapter"]["lora_rank"]["origin"]
    for file in (output / ADAPTER, output / "checkpoint-3" / ADAPTER):
        with safe_open(file, "pt") as handle:
            texts = handle.metadata()
        step = 3 if "checkpoint" in str(file) else 6
        assert json.loads(texts["training_summary"])["steps"] == step
        assert (texts["base_model"], texts["modelspec.comment"]) == ("ltx-0.9.5", f"after {step} steps")
        assert not [name for name, text in texts.items() if str(project.folder.parent) in text]
    events = list(read_journal(output, kinds=("phase_ended", "hardware_found", "hardware_sampled")))
    assert [event["phase"] for event in events if "phase" in event] == [
        "init_data_backend", "init_load_base_model", "init_prepare_models", "benchmark_base_model", "checkpoint_save",
        "checkpoint_save", "model_save", "final_validation",
    ]  # fmt: skip
    assert {event["kind"] for event in events} == {"phase_ended", "hardware_found", "hardware_sampled"}
    memory = list(read_journal(output, kinds=("memory_measured",)))
    assert [event["phase"] for event in memory] == ["training", "denoising videos", "decoding videos"]
    assert all(event["measured_bytes"] > 1e6 for event in memory)
    assert memory[1]["forecast_bytes"] == pytest.approx(memory[1]["measured_bytes"], rel=0.1)
    assert "decoding videos" in (output / "report.html").read_text()
    paces = list(read_journal(output, kinds=("pace_measured",)))
    assert [pace["step"] for pace in paces[:2]] == [4, 5]  # told again with twice the steps
    left = paces[1]["left"]
    assert left["training"] == pytest.approx(1 / paces[1]["steps_per_second"])
    assert (left["checkpoint"] > 0, left["validation"] > 0) == (True, True)
    assert paces[1]["seconds_left"] == pytest.approx(sum(left.values()))
    assert paces[1]["forecast"] == ["validation"]  # that of the end is the first; a checkpoint has been measured
    for phrase in ("Buckets", "96x64@9", "Training", "adapter  ", "report.html"):
        assert phrase in told, phrase


def test_a_resumed_run_equals_the_straight_one_and_encodes_nothing_again(
    project: Project, capfd: pytest.CaptureFixture
) -> None:
    straight = project.folder / "straight"
    assert main(project.arguments(output_dir=straight, max_train_steps=6)) == 0
    capfd.readouterr()
    assert main(project.arguments(max_train_steps=3)) == 0
    assert "4 reused" in capfd.readouterr().out
    assert main(project.arguments(max_train_steps=6)) == 0
    assert "checkpoint-3" in capfd.readouterr().out
    assert same_adapter(straight / ADAPTER, project.output / ADAPTER)
    assert [line["loss"] for line in project.metrics()] == [
        json.loads(line)["loss"] for line in (straight / "metrics.jsonl").read_text().splitlines()
    ]
    # A finished run says so and changes nothing.
    shutil.copy(project.output / ADAPTER, project.folder / ADAPTER)
    assert main(project.arguments(max_train_steps=6)) == 0
    assert "nothing to train" in capfd.readouterr().out
    assert same_adapter(project.folder / ADAPTER, project.output / ADAPTER)


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(project: Project) -> None:
    metrics = project.output / "metrics.jsonl"
    with project.start(max_train_steps=100000) as process:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 4):
            assert time.monotonic() < deadline, "the run did not reach step 4"
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert "Start the same command again" in told
    steps = [int(path.name.split("-")[1]) for path in project.output.glob("checkpoint-*")]
    assert max(steps) == project.metrics()[-1]["step"]
