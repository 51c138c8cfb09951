"""kill -9 at random points of a run with everybody outside told: what the folder says afterwards is true.

The journal is never torn, no message or upload is announced twice, everything that was not delivered is
delivered by a later start or counted as lost, and curves have each step once.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fork_server import fork_server
from projects import Project
from receiving_servers import Desk, Post, upload_server, webhook_server

from simpletuner.config.webhook_file import Webhook
from simpletuner.events.lines import read_lines
from simpletuner.events.records import event_of
from simpletuner.events.sinks.journal import JOURNAL
from simpletuner.events.sinks.webhook_messages import TRAIN, concerns
from simpletuner.events.types import Event, StageAdvanced, StageFinished, StageStarted
from simpletuner.recipes.runs import read_run

# A run of events alone: steps of two milliseconds, a checkpoint every ten, going on from the newest one.
EVENTS = """
import time
from pathlib import Path
from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.config.webhook_file import read_webhooks
from simpletuner.core.files import staged_folder, sweep
from simpletuner.events import choice, run as run_module
from simpletuner.events.run import open_run
from simpletuner.events.sinks import hub, hub_client, local_tracker, publisher, tensorboard, webhook
from simpletuner.events.types import *
from simpletuner.runtime.lock import hold_folder
from simpletuner.training.manifest import write_manifest
import huggingface_hub, json
from tensorboard.summary.writer.event_file_writer import EventFileWriter
folder = Path({folder!r})
settings = ReportingSection(report_to="tensorboard,simpletuner", push_checkpoints_to_hub=True, hub_model_id="films")
webhooks = read_webhooks(json.loads({webhooks!r}), "test").webhooks
def start(word):
    folder.mkdir(exist_ok=True)
    with hold_folder(folder), open_run(folder, {{}}, "night", reporting=settings, webhooks=webhooks) as run:
        sweep(folder, recursive=False)
        done = max((int(path.name[11:]) for path in folder.glob("checkpoint-*")), default=0)
        run.emit(Noticed("note", "planning"))
        run.emit(RunStarted("night", str(folder), f"checkpoint-{{done}}" if done else ""))
        run.emit(StoryTold("Clips", (("found", "6"),)))
        run.emit(TrainingBegan(done, 100000, 1, 10, 10, 2, 2))
        last = done + 15 if word == "end" else 100000
        for number in range(done + 1, last + 1):
            time.sleep(0.002)
            run.emit(StepFinished(number, 1, 1 / number, 1e-4, 0.7, 2, 336, 0.002))
            if number % 10 == 0:
                with staged_folder(folder / f"checkpoint-{{number}}") as staging:
                    (staging / "pytorch_lora_weights.safetensors").write_bytes(b"step %d" % number)
                    write_manifest(staging, number)
                run.emit(CheckpointSaved(number, str(folder / f"checkpoint-{{number}}"), 0.1, 5))
        run.emit(RunFinished(last, "stopped"))
"""

# A whole training of the small checkpoint by the program itself.
TRAINING = """
from simpletuner.cli.main import main
import simpletuner.recipes.train, simpletuner.cli.train, diffusers, peft, huggingface_hub, torch, av
import simpletuner.events.sinks.hub, simpletuner.events.sinks.tensorboard, simpletuner.events.sinks.webhook
import tensorboard.summary.writer.event_file_writer
import simpletuner.models.ltxvideo.family
from diffusers import LTXVideoTransformer3DModel, AutoencoderKLLTXVideo, LTXPipeline
from transformers import T5EncoderModel, T5TokenizerFast
def start(word):
    code = main({arguments!r})
    return 0 if code in (0, 130) else code
"""


@pytest.fixture
def outside() -> Iterator[tuple[Desk, Desk, Desk]]:
    with webhook_server() as raw, webhook_server() as chat, upload_server() as hub:
        yield raw, chat, hub


def variables(folder: Path, hub: Desk) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_", "WANDB_"))
    }
    root = Path(__file__).resolve().parents[2]
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_canary", "PYTHONPATH": str(root), "HOME": str(folder)}  # fmt: skip


def hooks(raw: Desk, chat: Desk) -> list[dict[str, str]]:
    return [
        {"webhook_type": "raw", "callback_url": raw.url},
        {"webhook_type": "discord", "webhook_url": chat.url},
    ]


def journal_of(folder: Path) -> list[dict[str, Any]]:
    """All events; every line but the last is whole, and none is missing."""
    if not (folder / JOURNAL).exists():
        return []
    *lines, tail = (folder / JOURNAL).read_bytes().split(b"\n")
    found = [json.loads(line) for line in lines]
    assert tail == b"" or len(tail) < 4096
    assert [line["sequence"] for line in found] == list(range(1, len(found) + 1))
    return found


def check_state(folder: Path, hub: Desk) -> None:
    """What a kill leaves behind tells the truth."""
    events = journal_of(folder)
    found = read_run(folder)
    assert (found is None) == (not events)
    if found is None:
        return
    starts = [line for line in events if line["kind"] == "run_started"]
    if not starts:
        assert found.state == "never began"
        return
    begun = starts[-1]["sequence"]
    since = [line for line in events if line["sequence"] > begun]
    ends = [line["outcome"] for line in since if line["kind"] == "run_finished"]
    assert found.state == (ends[-1] if ends else "crashed")
    steps = [line["step"] for line in since if line["kind"] == "step_finished"]
    if steps:
        assert found.facts.step == steps[-1]
    uploaded = [line["what"] for line in events if line["kind"] == "uploaded"]
    assert len(uploaded) == len(set(uploaded)), "an upload was announced twice"
    committed = {title.split(": ")[1].split(",")[0] for _, title, _ in hub.commits}
    assert set(uploaded) <= committed, "what was announced is there"


def sequence_of(post: Post) -> int:
    headers = {name.lower(): value for name, value in post.headers.items()}
    return int(headers["idempotency-key"].split("-")[1])


def gives_message(event: Event, hook: Webhook) -> bool:
    """Whether this event alone gives a message: progress of a stage comes once a second, and training has its own."""
    if isinstance(event, StageAdvanced) or (isinstance(event, (StageStarted, StageFinished)) and event.stage == TRAIN):
        return False
    return concerns(event, hook)


def check_messages(folder: Path, raw: Desk, chat: Desk) -> None:
    """Every event went out in order, once, or is counted as lost."""
    events = {line["sequence"]: event_of(line) for line in journal_of(folder)}
    records = {path: list(read_lines(path)) for path in (folder / "delivery").glob("webhook-*.jsonl")}
    for desk, hook in (
        (raw, Webhook(webhook_type="raw", callback_url="http://x")),
        (chat, Webhook(webhook_type="discord", webhook_url="http://x")),
    ):
        # A kill in the middle of a request leaves half of one, which no receiver takes for a message.
        whole = [post for post in desk.posts if len(post.body) == int(post.headers.get("Content-Length") or 0)]
        posts = [post for post in whole if post.method == "POST"]
        ids = Counter(post.headers.get("Idempotency-Key") for post in posts if b'"is_repeat"' not in post.body)
        assert max(ids.values()) == 1, "a message went out twice and did not say so"
        order = [sequence_of(post) for post in posts if b'"is_repeat"' not in post.body]
        assert order == sorted(order)
        threads = {next(iter(ids)).split("-")[0]}  # type: ignore[union-attr]
        (record,) = [lines for lines in records.values() if lines[0]["thread"] in threads]
        wanted = {number for number, event in events.items() if event is not None and gives_message(event, hook)}
        missing = {number for number in wanted if number <= record[-1]["settled"]} - {sequence_of(p) for p in posts}
        lost = sum(record[0]["lost"].values()) + sum("why" in line for line in record)
        assert len(missing) <= lost, (len(missing), lost)
        assert wanted - set(range(record[-1]["settled"] + 1)) <= {max(events), max(events) - 1}


def play(server: Any, folder: Path, hub: Desk, kills: int, longest: float) -> int:
    """Starts that are killed at random moments, each looked at; returns how many were."""
    draw = random.Random(kills)
    killed = 0
    for _ in range(kills):
        was_killed, _ = server.run("go on", draw.uniform(0.0, longest))
        killed += was_killed
        check_state(folder, hub)
    return killed


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again(tmp_path: Path, outside: tuple[Desk, Desk, Desk], kills: int) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    raw, chat, hub = outside
    folder = tmp_path / "run"
    code = EVENTS.format(folder=str(folder), webhooks=json.dumps(hooks(raw, chat)))
    with fork_server(code, variables(tmp_path, hub), tmp_path / "errors.txt") as server:
        assert play(server, folder, hub, kills, 0.5) == kills
        server.run("end")
    check_state(folder, hub)
    check_messages(folder, raw, chat)
    events = journal_of(folder)
    last = [line["step"] for line in events if line["kind"] == "step_finished"][-1]
    saved = {f"checkpoint-{line['step']}" for line in events if line["kind"] == "checkpoint_saved"}
    assert {line["what"] for line in events if line["kind"] == "uploaded"} == saved
    found = accumulator.EventAccumulator(str(folder / "logs" / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    # Files are read by the second of their start, and several starts share one here: later ones may be forgotten.
    shown = [item.step for item in found.Scalars("train_loss")]
    assert shown == sorted(set(shown))
    steps = [line["step"] for line in read_lines(folder / "training_metrics.jsonl")]
    # A start that found no checkpoint is a fresh one, and tells its steps from 1.
    story = steps[len(steps) - 1 - steps[::-1].index(1) :]
    assert story == list(range(1, last + 1))


@pytest.mark.slow
def test_a_training_that_is_killed_again_and_again(project: Project, outside: tuple[Desk, Desk, Desk]) -> None:
    raw, chat, hub = outside
    (project.folder / "webhook.json").write_text(json.dumps(hooks(raw, chat)))
    project.change_config(
        report_to="tensorboard,simpletuner", push_to_hub="true", push_checkpoints_to_hub="true", hub_model_id="films",
        webhook_config=str(project.folder / "webhook.json"), checkpoint_step_interval=2, max_train_steps=4000,
        checkpoints_total_limit=3,
    )  # fmt: skip
    code = TRAINING.format(arguments=project.arguments())
    with fork_server(code, variables(project.folder, hub), project.folder / "errors.txt") as server:
        killed = play(server, project.output, hub, 50, 6.0)
        project.change_config(max_train_steps=max(1, read_run(project.output).checkpoint or 0) + 3)  # type: ignore[union-attr]
        was_killed, _ = server.run("end")
    assert not was_killed
    assert killed >= 45
    check_state(project.output, hub)
    check_messages(project.output, raw, chat)
    assert read_run(project.output).state == "finished"  # type: ignore[union-attr]
    steps = [line["step"] for line in read_lines(project.output / "training_metrics.jsonl")]
    assert steps == sorted(set(steps))
