"""`simpletuner generate` after a run: what is sampled is what the run's own validation showed, frame by frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from projects import Project

from simpletuner.cli.main import main
from simpletuner.validation.video_file import Frames, read_recipe, read_video

VIDEOS: dict[str, Any] = {
    "validation_disable": "false", "validation_prompt": "a red circle moves to the right",
    "validation_resolution": "96x64", "validation_num_video_frames": 9, "validation_num_inference_steps": 2,
    "disable_benchmark": "true", "max_train_steps": 2, "learning_rate": 1e-2, "validation_step_interval": 0,
    "use_ema": "true", "ema_decay": 0.5, "framerate": 12,
}  # fmt: skip
LOKR = {
    "algo": "lokr", "multiplier": 1.0, "linear_alpha": 1, "full_matrix": True, "factor": 4,
    "apply_preset": {"target_module": ["Attention", "FeedForward"]},
}  # fmt: skip


def frames(path: Path) -> Frames:
    return read_video(path)[0]


@pytest.mark.slow
def test_a_run_makes_again_what_its_validation_showed(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(project.arguments(**VIDEOS)) == 0
    shown = project.output / "validation_videos"
    for weights, name in (("trained", "step_2"), ("ema", "step_2_ema")):
        out = project.folder / f"{weights}.mp4"
        assert main(["generate", "--run", str(project.output), "--weights", weights, "--out", str(out)]) == 0
        assert np.array_equal(frames(out), frames(shown / f"{name}_validation_96x64.mp4")), weights
        recipe = read_recipe(out)
        assert recipe["prompt"] == VIDEOS["validation_prompt"]
        assert (recipe["trained_steps"], recipe["release"]) == (2, "0.9.5")
    assert read_recipe(shown / "step_2_validation_96x64.mp4")["seed"] == 42
    told = capfd.readouterr().out
    assert "0 encoded" in told  # the run's own text features are used
    # Half the adapter and none of it give something else; a picture becomes the first frame.
    adapter = f"{project.output}/pytorch_lora_weights.safetensors"
    Image.new("RGB", (96, 64), (200, 30, 30)).save(project.folder / "red.png")
    out = project.folder / "more"
    words = [
        "generate", "--adapter", f"{adapter}:0.5", "--prompt", "a blue square", "--image",
        str(project.folder / "red.png"), "--count", "2", "--seed", "5", "--steps", "1", "--out", str(out),
    ]  # fmt: skip
    assert main(words) == 0
    made = sorted(out.glob("*.mp4"))
    assert [path.name for path in made] == ["a_blue_square_96x64_seed5.mp4", "a_blue_square_96x64_seed6.mp4"]
    assert not np.array_equal(*map(frames, made))
    assert read_recipe(made[0])["adapters"] == [{"file": "pytorch_lora_weights.safetensors", "strength": 0.5}]
    assert read_recipe(made[0])["image"] == "red.png"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"lora_type": "lycoris"},
        {"model_type": "full", "optimizer": "adamw_bf16", "mixed_precision": "bf16"},
        {"optimizer": "adamw_bf16", "mixed_precision": "bf16", "lora_alpha": 2, "lora_targets": "all"},
        {"base_model_precision": "int8-quanto", "optimizer": "adamw_bf16", "mixed_precision": "bf16"},
        {"use_dora": "true"},
        {"lora_format": "comfyui"},
        {"enable_group_offload": "true", "gradient_checkpointing": "true"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_kind_of_weights(project: Project, options: dict[str, Any]) -> None:
    if "lora_type" in options:
        file = project.folder / "lycoris.json"
        file.write_text(json.dumps(LOKR))
        options = {**options, "lycoris_config": file, "validation_lycoris_strength": 1.0}
    assert main(project.arguments(**{**VIDEOS, **options})) == 0
    shown = project.output / "validation_videos"
    for weights, name in (("trained", "step_2"), ("ema", "step_2_ema")):
        out = project.folder / f"{weights}.mp4"
        assert main(["generate", "--run", str(project.output), "--weights", weights, "--out", str(out)]) == 0
        assert np.array_equal(frames(out), frames(shown / f"{name}_validation_96x64.mp4")), weights
