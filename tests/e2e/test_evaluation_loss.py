"""The evaluation loss of a run: measured without a trace, told everywhere, its best weights kept, patience obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import Project
from safetensors.torch import load_file

from simpletuner.cli.main import main
from simpletuner.data.world import write_world
from simpletuner.events.sinks.evaluations import read_evaluations
from simpletuner.events.sinks.journal import read_journal

WEIGHTS = "pytorch_lora_weights.safetensors"
MEASURED = {"eval_steps_interval": 2, "eval_timesteps": 4, "num_eval_images": 2}


@pytest.fixture
def measured(project: Project) -> Project:
    """The usual project with two clips set apart; its LoRA has dropout, so that a measurement could disturb draws."""
    held = project.folder / "held"
    write_world(held, clips=2, width=96, height=64, num_frames=12, frame_rate=12.0, seed=2)
    entries = json.loads(project.datasets.read_text())
    apart = {**entries[0], "id": "held", "dataset_type": "eval", "instance_data_dir": str(held)}
    entries.append({**apart, "cache_dir_vae": str(project.folder / "cache" / "held")})
    project.datasets.write_text(json.dumps(entries))
    project.change_config(lora_dropout=0.1, checkpoint_step_interval=2)
    return project


def train(project: Project, output: Path | None = None, **options: Any) -> list[dict[str, Any]]:
    """Run it; gives what was measured."""
    output = output or project.output
    assert main(project.arguments(**{**MEASURED, **options}, output_dir=output)) == 0
    return list(read_evaluations(output))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_measuring_leaves_training_as_it_is_and_is_told(measured: Project, capfd: pytest.CaptureFixture[str]) -> None:
    lines = train(measured, max_train_steps=4)
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert all(len(line["by_level"]["held"]) == 4 and line["clips"] == 2 for line in lines)
    assert lines[0]["train_loss"] is None
    assert lines[1]["train_loss"] == pytest.approx(sum(step["loss"] for step in measured.metrics()[:2]) / 2)
    best = min(lines, key=lambda line: line["loss"])
    assert lines[-1]["best_step"] == best["step"]
    told = " ".join(capfd.readouterr().out.split())
    assert f"Loss on clips set apart (step 4): {lines[2]['loss']:.4f}" in told
    journal = [event for event in read_journal(measured.output) if event["kind"] == "loss_evaluated"]
    assert [event["loss"] for event in journal] == [line["loss"] for line in lines]
    quiet = measured.folder / "quiet"
    assert main(measured.arguments(max_train_steps=4, output_dir=quiet, eval_loss_disable="true")) == 0
    assert same(weights(quiet), weights(measured.output))
    assert not list(read_evaluations(quiet))
    # Afterwards the same numbers come from the files, whatever the batch size.
    capfd.readouterr()
    words = measured.arguments(**MEASURED, train_batch_size=1)[1:]
    assert main(["evaluate", "base", str(measured.output), "--json", *words]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [one["loss"] for one in found] == pytest.approx([lines[0]["loss"], lines[2]["loss"]], abs=1e-6)
    assert found[0]["losses"].keys() == {"held"}


@pytest.mark.slow
def test_a_resumed_run_measures_and_judges_like_the_straight_one(measured: Project) -> None:
    straight = train(measured, measured.folder / "straight", max_train_steps=6, use_ema="true", ema_decay=0.5)
    train(measured, max_train_steps=4, use_ema="true", ema_decay=0.5)
    resumed = train(measured, max_train_steps=6, use_ema="true", ema_decay=0.5)
    numbers = [
        [(line["step"], line["weights"], line["loss"], line["is_best"], line["best_step"]) for line in lines]
        for lines in (straight, resumed)
    ]
    assert numbers[0] == numbers[1]
    assert [(step, kind) for step, kind, *_ in numbers[0]] == [
        (step, kind) for step in (0, 2, 4, 6) for kind in ("adapter", "ema")
    ]


@pytest.mark.slow
def test_best_weights_are_kept_and_patience_ends_the_run(measured: Project, capfd: pytest.CaptureFixture[str]) -> None:
    # A rate that destroys the model: the first measurement stays the lowest after an early best.
    options = {
        "learning_rate": 0.3, "max_train_steps": 40, "eval_early_stop_patience": 2, "checkpoints_total_limit": 1,
        "optimizer": "torch-adamw", "max_grad_norm": 0,
    }  # fmt: skip
    lines = train(measured, **options)
    last = int(lines[-1]["step"])
    assert last < 40
    told = capfd.readouterr().out
    assert "stopped early: 2 measurements in a row" in " ".join(told.split())
    assert (measured.output / WEIGHTS).is_file()
    # Starting again changes nothing; more patience goes on.
    assert train(measured, **options)[-1]["step"] == last
    assert train(measured, **{**options, "eval_early_stop_patience": 4})[-1]["step"] > last


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"lora_targets": "all"},
        {"lora_targets": "all", "use_ema": "true", "ema_decay": 0.3},
        {"lora_targets": "all", "optimizer": "adamw_schedulefree", "mixed_precision": "bf16"},
        {"model_type": "full", "learning_rate": 1e-3},
    ],
    ids=["plain", "average", "schedule-free", "full"],
)
def test_the_best_weights_make_the_best_loss(
    measured: Project, capfd: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    # On clips that are trained too, so that there is something to see within few steps.
    entries = json.loads(measured.datasets.read_text())
    entries[-1]["instance_data_dir"] = str(measured.clips)
    measured.datasets.write_text(json.dumps(entries))
    lines = train(measured, **{"learning_rate": 1e-2, "lora_dropout": 0, "max_train_steps": 12, **options})
    best = min((line for line in lines if line["decides"]), key=lambda line: line["loss"])
    assert best["weights"] == ("ema" if "use_ema" in options else "adapter")
    assert best["step"] > 0
    record = json.loads((measured.output / "best/best.json").read_text())
    assert (record["step"], record["evaluation_loss"]) == (best["step"], best["loss"])
    capfd.readouterr()
    words = measured.arguments(**{**MEASURED, **options})[1:]
    assert main(["evaluate", str(measured.output / "best"), "--json", *words]) == 0
    assert json.loads(capfd.readouterr().out)[0]["loss"] == pytest.approx(best["loss"], abs=1e-6)
    form = ["--prompt", "x", "--width", "64", "--height", "64", "--frames", "9", "--steps", "1"]
    assert main(["generate", "--run", str(measured.output), "--weights", "best", *form]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"eval_dataset_pooling": "true"}, {"eval_dataset_id": "held"}])
def test_which_sets_are_measured(measured: Project, options: dict[str, Any]) -> None:
    entries = json.loads(measured.datasets.read_text())
    entries.append({**entries[-1], "id": "again", "cache_dir_vae": str(measured.folder / "cache" / "again")})
    measured.datasets.write_text(json.dumps(entries))
    (line, *_) = train(measured, max_train_steps=1, **options)
    assert list(line["losses"]) == (["pooled"] if "eval_dataset_pooling" in options else ["held"])


@pytest.mark.slow
def test_parts_of_an_epoch(measured: Project) -> None:
    """Four clips in batches of two are two steps."""
    lines = train(measured, max_train_steps=3, eval_steps_interval=0, eval_epoch_interval=0.5, num_eval_images=1)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert {line["clips"] for line in lines} == {1}
