"""The guide's own files, untouched: checked, planned, and run with only model and step counts overridden."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simpletuner.data.world import write_world

CLIPS = 8  # the guide's batch


@pytest.fixture
def desk(tmp_path: Path, guide_files: Path) -> Path:
    """A folder laid out as the guide tells, with clips of the size and length that its data set wants."""
    (tmp_path / "config/ltxvideo").mkdir(parents=True)
    shutil.copy(guide_files / "config.json", tmp_path / "config/config.json")
    shutil.copy(guide_files / "multidatabackend.json", tmp_path / "config/ltxvideo/multidatabackend.json")
    (tmp_path / "config/ltxvideo/lycoris_config.json").write_text(
        '{"algo": "lokr", "multiplier": 1.0, "full_matrix": true, "linear_alpha": 1, "factor": 16, "apply_preset": '
        '{"target_module": ["Attention", "FeedForward"], "module_algo_map": {"Attention": {"factor": 16}, '
        '"FeedForward": {"factor": 8}}}}'
    )
    (tmp_path / "config/ltxvideo/webhook.json").write_text(
        '{"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/callback", "log_level": "info"}'
    )
    clips = tmp_path / "datasets/disney-black-and-white"
    write_world(clips, clips=1, width=480, height=480, num_frames=125, frame_rate=25.0, seed=0)
    for number in range(1, CLIPS):
        for ending in ("mp4", "txt"):
            shutil.copy(clips / f"clip-000.{ending}", clips / f"clip-{number:03}.{ending}")
    return tmp_path


def run(desk: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # No account, nobody at the other end: trackers and uploads fail, the run must not.
    environment = {**os.environ, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_none"}
    return subprocess.run(
        [sys.executable, "-m", "simpletuner", *words], cwd=desk, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_check_and_plan_tell_what_the_guide_leaves_open(desk: Path) -> None:
    checked = run(desk, "check")
    assert checked.returncode == 1, checked.stdout
    for text in (
        "is trained as 121 frames",
        "read as one cosine from 5e-05 to 4e-07 without warm-up",
        "gradients are not clipped",
        "lora_rank = 128 has no effect with lora_type lycoris",
        "the class Attention is read as LTXAttention",
        "400,000 steps at this pace",
        "This can be trained: 3 warnings",  # the Hub is not asked under test
    ):
        assert text in " ".join(checked.stdout.split()), text
    planned = run(desk, "plan", "--card", "rtx4090")
    assert planned.returncode in (0, 1), planned.stdout + planned.stderr
    assert "480x480@121" in planned.stdout


@pytest.mark.slow
def test_it_trains_with_only_model_and_steps_overridden(desk: Path, miniature: Path) -> None:
    pytest.importorskip("torchao")
    pytest.importorskip("wandb")
    done = run(
        desk, "train", f"pretrained_model_name_or_path={miniature}", "max_train_steps=2", "checkpoint_step_interval=1",
        "validation_step_interval=2", "validation_num_inference_steps=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    output = desk / "output/ltxvideo"
    assert (output / "pytorch_lora_weights.safetensors").is_file()
    assert (output / "ema/pytorch_lora_weights.safetensors").is_file()
    assert (output / "checkpoint-2").is_dir()
    assert [path.name for path in (output / "validation_videos").glob("step_2_ema_*.mp4")]
