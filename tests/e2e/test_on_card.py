"""A whole run on a card: cached, trained, shown, stopped and resumed, generated from; nothing of it falls back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from projects import Project
from safetensors.torch import load_file

from simpletuner.cli.main import main
from simpletuner.events.sinks.journal import read_journal
from simpletuner.validation.video_file import read_video

pytestmark = pytest.mark.gpu

SHOWN: dict[str, Any] = {
    "validation_disable": "false", "validation_prompt": "a red circle moves to the right",
    "validation_resolution": "96x64", "validation_num_video_frames": 9, "validation_num_inference_steps": 2,
    "validation_step_interval": 3, "mixed_precision": "bf16", "optimizer": "adamw_bf16", "vae_dtype": "bf16",
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"use_ema": "true", "ema_decay": 0.5},
    "streamed": {"enable_group_offload": "true", "group_offload_use_stream": "true", "gradient_checkpointing": "true"},
    "int8": {"base_model_precision": "int8-quanto"},
    "nf4": {"base_model_precision": "nf4-bnb", "optimizer": "bnb-lion8bit-paged"},
    "full": {"model_type": "full", "gradient_checkpointing": "true"},
    "compiled": {"dynamo_backend": "inductor", "gradient_checkpointing": "false"},
    "away": {"enable_model_cpu_offload": "true", "gradient_checkpointing": "true"},
}


def trained(folder: Path) -> dict[str, torch.Tensor]:
    name = next(folder.glob("*.safetensors"), None) or next(folder.rglob("diffusion_pytorch_model.safetensors"))
    return load_file(name)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains_shows_and_ends(project: Project, card: torch.device, way: str) -> None:
    assert main(project.arguments(**{**SHOWN, **WAYS[way]})) == 0
    events = list(read_journal(project.output))
    told = [event["text"] for event in events if event["kind"] == "noticed" and event["severity"] != "note"]
    assert not [text for text in told if "memory" in text or "no video" in text], told
    assert all(torch.isfinite(tensor.float()).all() for tensor in trained(project.output).values())
    videos = sorted((project.output / "validation_videos").glob("step_6*.mp4"))
    assert videos
    assert read_video(videos[0])[0].shape[:3] == (9, 64, 96)
    steps = [event for event in events if event["kind"] == "step_finished"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    if card.type == "cuda":
        assert 0 < steps[-1]["memory_bytes"] < 8e9  # the allocator's, not the process's
        measured = {event["phase"]: event for event in events if event["kind"] == "memory_measured"}
        assert "training" in measured


def test_a_resumed_run_ends_where_the_straight_one_does(project: Project, card: torch.device) -> None:
    """Up to the order of sums, which the card may choose."""
    assert main(project.arguments(output_dir=project.folder / "straight")) == 0
    assert main(project.arguments(max_train_steps=3)) == 0
    assert main(project.arguments()) == 0
    expected = trained(project.folder / "straight")
    for name, tensor in trained(project.output).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)


def test_what_is_generated_is_what_was_shown(project: Project, card: torch.device) -> None:
    assert main(project.arguments(**SHOWN)) == 0
    out = project.folder / "again.mp4"
    assert main(["generate", "--run", str(project.output), "--out", str(out)]) == 0
    shown = project.output / "validation_videos" / "step_6_validation_96x64.mp4"
    ours, theirs = (np.asarray(read_video(path)[0], dtype=np.float32) for path in (out, shown))
    assert np.abs(ours - theirs).mean() < 2.0  # of 255: the card may add in another order
