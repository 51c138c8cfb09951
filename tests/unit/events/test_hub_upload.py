"""Uploads to a real small Hub, by the Hub's own client in a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from receiving_servers import Answer, Desk, upload_server

from simpletuner.events.sinks.journal import read_journal

RUN = """
import json, shutil, sys
from pathlib import Path
from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.events.run import open_run
from simpletuner.events.sinks.publisher import PublishPatience
from simpletuner.events.types import CheckpointSaved, RunFinished, RunStarted
folder, settings, outcome = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
PublishPatience.__init__.__defaults__ = (3, 0.02, 0.1, 60.0, 60.0)
said = lambda value, origin="config.json:1": {"value": value, "origin": origin}
document = {
    "options": {
        "model": {"model_family": said("ltxvideo"), "output_dir": said(str(folder)), "lora_rank": said(16)},
        "reporting": {"webhook_config": said("***"), "seed": said(42, "default")},
    },
    "prompts": [{"nickname": "cat", "prompt": "a cat"}],
}
with open_run(folder, document, "night", reporting=ReportingSection(**settings)) as run:
    run.emit(RunStarted("night", str(folder)))
    checkpoint = folder / "checkpoint-5"
    (checkpoint / "ema").mkdir(parents=True)
    for name in ("pytorch_lora_weights.safetensors", "ema/pytorch_lora_weights.safetensors", "optimizer.safetensors"):
        (checkpoint / name).write_bytes(b"five " + name.encode())
    run.emit(CheckpointSaved(5, str(checkpoint), 1.0, 4))
    shutil.rmtree(checkpoint)  # as checkpoints_total_limit does
    videos = folder / "validation_videos"
    videos.mkdir()
    for name in ("base_cat_64x32", "step_5_cat_64x32", "step_10_cat_64x32", "step_99_cat_64x32"):
        (videos / f"{name}.mp4").write_bytes(name.encode())
        (videos / f"{name}.png").write_bytes(b"png")
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"ten")
    (folder / "notes.txt").write_text("private")
    run.emit(RunFinished(10, outcome))
"""
BOTH = {"push_to_hub": True, "push_checkpoints_to_hub": True, "hub_model_id": "ltxvideo-disney"}


@pytest.fixture
def hub() -> Iterator[Desk]:
    with upload_server() as desk:
        yield desk


class Finished:
    """What a run left behind."""

    def __init__(self, folder: Path, output: str) -> None:
        self.folder, self.output = folder, output
        lines = list(read_journal(folder))
        self.warnings = [line["text"] for line in lines if line["kind"] == "noticed" and line["severity"] == "warning"]
        self.uploaded = [line["what"] for line in lines if line["kind"] == "uploaded"]


def play(hub: Desk, tmp_path: Path, repository: Path, outcome: str = "finished", token: str = "hf_canary",
         **settings: Any) -> Finished:  # fmt: skip
    """A run whose Hub is the small one."""
    folder = tmp_path / "run"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    variables = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
                 "PYTHONPATH": str(repository), **({"HF_TOKEN": token} if token else {})}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), json.dumps({**BOTH, **settings}), outcome],
        env=variables, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = "".join(path.read_text() for path in folder.glob("*.json*"))
    assert "hf_canary" not in done.stdout + done.stderr + written
    return Finished(folder, done.stdout)


def test_checkpoints_and_the_result_are_uploaded(hub: Desk, tmp_path: Path, repository: Path) -> None:
    run = play(hub, tmp_path, repository)
    assert run.uploaded == ["checkpoint-5", "the finished weights"]
    assert run.warnings == []
    assert f"Uploaded the finished weights to {hub.url}/tester/ltxvideo-disney" in run.output
    assert hub.private == {"tester/ltxvideo-disney": True}
    (_, first, early), (_, _, late) = hub.commits
    assert first == "night: checkpoint-5, step 5"
    assert {"checkpoint-5/optimizer.safetensors", "checkpoint-5/ema/pytorch_lora_weights.safetensors"} <= set(early)
    assert {"pytorch_lora_weights.safetensors", "ema/pytorch_lora_weights.safetensors", "README.md"} <= set(early)
    assert set(late) == {
        "pytorch_lora_weights.safetensors", "README.md", "simpletuner_config.json",
        "validation_videos/base_cat_64x32.mp4", "validation_videos/base_cat_64x32.png",
        "validation_videos/step_10_cat_64x32.mp4", "validation_videos/step_10_cat_64x32.png",
    }  # fmt: skip
    files = {name.removeprefix("tester/ltxvideo-disney/"): content for name, content in hub.files.items()}
    assert files["checkpoint-5/pytorch_lora_weights.safetensors"].startswith(b"five"), "held although it was removed"
    assert files["pytorch_lora_weights.safetensors"] == b"ten"
    assert json.loads(files["simpletuner_config.json"]) == {"model_family": "ltxvideo", "lora_rank": 16}
    assert files["README.md"] == (run.folder / "README.md").read_bytes()
    assert not list(run.folder.glob(".staging-*"))


def test_what_is_not_asked_for_stays_here(hub: Desk, tmp_path: Path, repository: Path) -> None:
    run = play(hub, tmp_path, repository, push_checkpoints_to_hub=False, model_card_private=False, hub_model_id=None,
               tracker_project_name="my films!")  # fmt: skip
    assert run.uploaded == ["the finished weights"]
    assert hub.private == {"tester/my-films": False}


def test_a_stopped_run_uploads_its_checkpoints_only(hub: Desk, tmp_path: Path, repository: Path) -> None:
    run = play(hub, tmp_path, repository, outcome="stopped")
    assert run.uploaded == ["checkpoint-5"]
    assert run.warnings == []


def test_errors_of_the_server_are_sat_out(hub: Desk, tmp_path: Path, repository: Path) -> None:
    hub.answers.extend([Answer(500), Answer(500)])
    run = play(hub, tmp_path, repository, push_checkpoints_to_hub=False)
    assert run.uploaded == ["the finished weights"]
    assert run.warnings == []


@pytest.mark.parametrize(
    ("token", "reason"), [("", "there is no token of the Hub"), ("hf_wrong", "the token is not accepted")]
)
def test_a_failure_is_told_with_the_command_that_repeats_it(
    hub: Desk, tmp_path: Path, repository: Path, token: str, reason: str
) -> None:
    run = play(hub, tmp_path, repository, token=token)
    assert run.uploaded == []
    assert hub.commits == []
    assert run.warnings[0].startswith(f"uploading checkpoint-5 to the Hub fails: {reason}")
    assert len(run.warnings) == 3
    assert run.warnings[1].startswith(f"not uploaded to the Hub yet: checkpoint-5 ({reason}")
    assert run.warnings[1].endswith("It goes on when the run is started again"), "its folder is gone, its links are not"
    command = run.warnings[2].partition("upload it with: ")[2]
    assert command.startswith(f"hf upload ltxvideo-disney {run.folder} . --include pytorch_lora_weights.safetensors")
    assert "notes.txt" not in command
    assert command.endswith("--private")


AGAIN = """
import sys
from pathlib import Path
from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.events.run import open_run
from simpletuner.events.sinks.publisher import PublishPatience
from simpletuner.events.types import RunStarted
PublishPatience.__init__.__defaults__ = (3, 0.02, 0.1, 30.0, 30.0)
folder = Path(sys.argv[1])
settings = ReportingSection(push_to_hub=True, push_checkpoints_to_hub=True, hub_model_id="ltxvideo-disney",
                            post_upload_script=sys.argv[2])
with open_run(folder, {"prompts": []}, "night", reporting=settings) as run:
    run.emit(RunStarted("night", str(folder), "checkpoint-5"))
"""


def test_the_next_start_uploads_what_is_missing_and_announces_it_once(
    hub: Desk, tmp_path: Path, repository: Path
) -> None:
    play(hub, tmp_path, repository, token="hf_wrong")
    program = f'{shlex.quote(sys.executable)} -c "import sys; print(sys.argv[1:])"'
    script = program + " {global_step} {huggingface_path} '; rm -rf x'"
    variables = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
                 "PYTHONPATH": str(repository), "HF_TOKEN": "hf_canary", "HF_HUB_OFFLINE": "0"}  # fmt: skip
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", AGAIN, str(tmp_path / "run"), script],
            env=variables, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    run = Finished(tmp_path / "run", "")
    assert run.uploaded == ["checkpoint-5", "the finished weights"]
    assert len(hub.commits) == 2
    assert hub.files["tester/ltxvideo-disney/checkpoint-5/pytorch_lora_weights.safetensors"].startswith(b"five")
    assert not list((tmp_path / "run").glob(".waiting-*")), "nothing is held any more"
    assert (tmp_path / "run" / "post_upload_script.log").read_text().splitlines() == [
        "['5', 'tester/ltxvideo-disney', '; rm -rf x']", "['10', 'tester/ltxvideo-disney', '; rm -rf x']"
    ]  # fmt: skip


def test_a_hub_that_breaks_in_the_middle_is_never_announced(hub: Desk, tmp_path: Path, repository: Path) -> None:
    hub.answers.extend([Answer(0)] * 2)  # the first requests are answered properly
    hub.answers.extend([Answer(400, body=b"{}")] * 50)
    run = play(hub, tmp_path, repository)
    assert run.uploaded == []
    assert "Uploaded" not in run.output
    assert "uploading checkpoint-5 to the Hub fails" in run.warnings[0]


def test_full_training_uploads_its_transformer(hub: Desk, tmp_path: Path, repository: Path) -> None:
    (tmp_path / "run" / "transformer").mkdir(parents=True)
    (tmp_path / "run" / "transformer" / "config.json").write_text("{}")
    (tmp_path / "run" / "transformer" / "model.safetensors").write_bytes(b"all")
    play(hub, tmp_path, repository, push_checkpoints_to_hub=False)
    assert hub.files["tester/ltxvideo-disney/transformer/model.safetensors"] == b"all"
