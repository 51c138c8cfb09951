"""A whole run with everybody outside told: trackers, webhooks, the Hub; and with all of them dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from projects import Project
from receiving_servers import Answer, upload_server, webhook_server

pytestmark = pytest.mark.slow


def train(project: Project, hub_address: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_", "WANDB_"))
    }
    own = {"HF_ENDPOINT": hub_address, "HF_HOME": str(project.folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    home = {"HOME": str(project.folder), "NETRC": str(project.folder / "no-netrc")}
    return subprocess.run(
        [sys.executable, "-m", "simpletuner", *project.arguments()],
        env={**kept, **own, **home, **variables}, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip


def outgoing(project: Project, *webhooks: dict[str, str]) -> None:
    """The guide's own options about who is told."""
    (project.folder / "webhook.json").write_text(json.dumps(webhooks))
    project.change_config(
        report_to="wandb,tensorboard", tracker_project_name="lora-training", tracker_run_name="ltxvideo-adamW",
        push_to_hub="true", push_checkpoints_to_hub="true", hub_model_id="ltxvideo-disney",
        webhook_config=str(project.folder / "webhook.json"), validation_disable=None, disable_benchmark=True,
        validation_prompt="a red ball", validation_resolution="64x64", validation_num_video_frames=9,
        validation_num_inference_steps=2, validation_step_interval=6,
    )  # fmt: skip


def test_everybody_is_told(project: Project) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    with upload_server() as hub, webhook_server() as raw, webhook_server() as chat:
        outgoing(
            project,
            {"webhook_type": "raw", "callback_url": raw.url, "auth_token": "canary"},
            {"webhook_type": "discord", "webhook_url": chat.url},
        )
        done = train(project, hub.url, HF_TOKEN="hf_canary")
        assert done.returncode == 0, done.stderr
        kinds = [post.document["type"] for post in raw.posts]
        assert kinds.count("training.status") >= 7  # the beginning and six steps
        assert {"notification", "lifecycle.stage", "training.checkpoint", "training.validation"} <= set(kinds)
        samples = [post.document for post in raw.posts if post.document["type"] == "training.validation"]
        assert samples[0]["videos"][0]["src"].startswith("data:video/mp4;base64,")
        assert any(b'filename="video0.mp4"' in post.body for post in chat.posts)
        assert [title for _, title, _ in hub.commits] == [
            "ltxvideo-adamW: checkpoint-3, step 3", "ltxvideo-adamW: checkpoint-6, step 6",
            "ltxvideo-adamW: the finished weights, step 6",
        ]  # fmt: skip
        weights = hub.files["tester/ltxvideo-disney/pytorch_lora_weights.safetensors"]
        assert weights == (project.output / "pytorch_lora_weights.safetensors").read_bytes()
        assert any(name.endswith("validation_64x64.mp4") for name in hub.files)
    assert list((project.output / "logs" / "tensorboard").iterdir())
    assert list((project.output / "logs" / "wandb").glob("offline-run-*/*.wandb"))
    assert "Uploaded the finished weights" in done.stdout
    assert "canary" not in done.stdout + done.stderr


def test_when_everybody_is_dead_the_run_is_as_good_as_ever(project: Project) -> None:
    with upload_server() as hub, webhook_server() as raw:
        raw.always = Answer(500, stall=0.2)
        hub.always = Answer(503, stall=0.2)  # one that refuses the login is told before anything is cached
        outgoing(project, {"webhook_type": "raw", "callback_url": raw.url})
        project.change_config(report_to="none")
        done = train(project, hub.url, HF_TOKEN="hf_canary")
    assert done.returncode == 0, done.stderr
    assert len(project.metrics()) == 6
    assert (project.output / "pytorch_lora_weights.safetensors").is_file()
    assert "hf upload ltxvideo-disney" in done.stdout
    assert "Uploaded" not in done.stdout
    assert "webhook 1 (raw)" in done.stdout
