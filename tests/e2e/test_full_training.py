"""`model_type` full through the command line: a folder that loads, videos of the base at the start only, resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from projects import Project

from simpletuner.cli.main import main

VIDEOS = {
    "validation_disable": "false", "validation_prompt": "a red circle moves to the right",
    "validation_resolution": "64x64", "validation_num_video_frames": 9, "validation_num_inference_steps": 2,
}  # fmt: skip


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model = LTXVideoTransformer3DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.bfloat16)
    return dict(model.state_dict())


@pytest.mark.slow
def test_full_run_stops_goes_on_and_leaves_a_transformer(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    full = {"model_type": "full", "optimizer": "adamw_bf16", "mixed_precision": "bf16", "use_ema": "true"}
    straight = project.folder / "straight"
    assert main(project.arguments(**full, output_dir=straight, max_train_steps=4)) == 0
    assert main(project.arguments(**full, **VIDEOS, max_train_steps=2)) == 0
    told = capfd.readouterr().out
    assert "all weights" in told
    assert "weights  " in told
    assert main(project.arguments(**full, **VIDEOS, max_train_steps=4)) == 0
    assert {path.name.split("_")[0] for path in project.output.rglob("*.mp4")} == {"base", "step"}
    one, other = weights_of(straight), weights_of(project.output)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(
        torch.equal(one[name], weight) for name, weight in weights_of(project.output / "checkpoint-2").items()
    )
    assert (project.output / "ema/transformer/config.json").is_file()
    # Without its base videos, a run that goes on says why there are none.
    for path in (project.output / "validation_videos").glob("base*"):
        path.unlink()
    capfd.readouterr()
    assert main(project.arguments(**full, **VIDEOS, max_train_steps=5)) == 0
    assert "the base model's videos are not made" in " ".join(capfd.readouterr().out.split())
    # What it left is a transformer to start from.
    assert main(project.arguments(pretrained_transformer_model_name_or_path=project.output, max_train_steps=1,
                                  output_dir=project.folder / "next")) == 0  # fmt: skip
    assert main(project.arguments(max_train_steps=6)) == 2
