"""Image-to-video training and validation through the command line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from projects import Project
from safetensors.torch import load_file

from simpletuner.cli.main import main
from simpletuner.validation.video_file import read_video

ADAPTER = "pytorch_lora_weights.safetensors"


def train(project: Project, name: str, **options: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The adapter and the losses of a run of two steps in a folder of its own, with common caches."""
    output = project.folder / name
    assert main(project.arguments(output_dir=output, max_train_steps=2, **options)) == 0
    losses = [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    return load_file(output / ADAPTER), losses


@pytest.mark.slow
def test_a_chance_of_nothing_is_plain_training_bit_for_bit(project: Project) -> None:
    plain, plain_losses = train(project, "plain")
    never, never_losses = train(project, "never", ltx_train_mode="i2v", ltx_i2v_prob=0, ltx_protect_first_frame="true")
    assert plain.keys() == never.keys()
    assert all(torch.equal(plain[name], never[name]) for name in plain)
    assert plain_losses == never_losses
    given, _ = train(project, "given", ltx_train_mode="i2v", ltx_i2v_prob=1, ltx_protect_first_frame="true")
    assert not all(torch.equal(plain[name], given[name]) for name in plain)


def test_training_and_validation_with_a_first_frame(project: Project) -> None:
    clip = next(path for path in sorted(project.clips.iterdir()) if path.suffix == ".mp4")
    inputs = project.folder / "inputs.json"
    inputs.write_text(json.dumps([{"path": str(clip), "prompt": "a red circle", "shortname": "circle"}]))
    _, losses = train(
        project, "given", ltx_train_mode="i2v", ltx_i2v_prob=1, ltx_protect_first_frame="true",
        validation_input=inputs, validation_disable="false", disable_benchmark="true", validation_resolution="64x64",
        validation_num_video_frames=9, validation_num_inference_steps=2,
    )  # fmt: skip
    assert np.isfinite(losses).all()
    (video,) = (project.folder / "given").rglob("step_2_circle_64x64.mp4")
    assert read_video(video)[0].shape == (9, 64, 64, 3)
    document = json.loads((project.folder / "given" / "resolved_config.json").read_text())
    assert document["prompts"][-1] == {"nickname": "circle", "prompt": "a red circle", "image": str(clip)}
