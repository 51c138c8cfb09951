"""Webhooks against real servers: what arrives, what faults do, and that training never waits."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from receiving_servers import Answer, Desk, webhook_server

from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.config.webhook_file import Webhook, read_webhooks
from simpletuner.events.run import open_run
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks import webhook
from simpletuner.events.sinks.journal import read_journal
from simpletuner.events.sinks.webhook import Patience, WebhookSink
from simpletuner.events.types import (
    CheckpointSaved,
    Event,
    Noticed,
    RunFinished,
    RunStarted,
    StageAdvanced,
    StageFinished,
    StageStarted,
    StepFinished,
    StoryTold,
    Uploaded,
    VideoGenerated,
)

HASTY = Patience(answer=0.3, attempts=4, first_pause=0.02, rest=0.05, at_end=2.0)
SECRET = "canary-token"


@pytest.fixture
def desk() -> Iterator[Desk]:
    with webhook_server() as desk:
        yield desk


def raw(desk: Desk, **settings: object) -> Webhook:
    document = {"webhook_type": "raw", "callback_url": f"{desk.url}/{SECRET}", "auth_token": SECRET, **settings}
    return read_webhooks(document, "test").webhooks[0]


def discord(desk: Desk, **settings: object) -> Webhook:
    document = {"webhook_type": "discord", "webhook_url": f"{desk.url}/{SECRET}", **settings}
    return read_webhooks(document, "test").webhooks[0]


class Told:
    """A sink on its own, and what it tells the run."""

    def __init__(self, folder: Path, *webhooks: Webhook, patience: Patience = HASTY) -> None:
        self.notices: list[Event] = []
        reporting = ReportingSection(tracker_project_name="films")
        context = SinkContext(folder, "night", {}, reporting, webhooks, self.notices.append)
        self.sink, self._sequence = WebhookSink(context, patience), 0

    def tell(self, *events: Event) -> None:
        for event in events:
            self._sequence += 1
            self.sink.receive(event, self._sequence)

    @property
    def texts(self) -> list[str]:
        return [f"{event.severity}: {event.text}" for event in self.notices if isinstance(event, Noticed)]


def step(number: int) -> StepFinished:
    return StepFinished(number, 1, 0.5, 1e-4, 0.7, 2, 336, 2.0)


def video(folder: Path, size: int = 8) -> VideoGenerated:
    path = folder / "step_2_cat_64x32.mp4"
    path.write_bytes(b"v" * size)
    path.with_suffix(".png").write_bytes(b"poster")
    return VideoGenerated(2, "adapter", "cat", "a cat, @everyone", 64, 32, 9, 25.0, 42, str(path), 1.0)


def test_raw_events_have_the_fields_receivers_know(desk: Desk, tmp_path: Path) -> None:
    told = Told(tmp_path, raw(desk))
    told.tell(
        RunStarted("night", "out"),
        StoryTold("Clips", (("found", "6"),)),
        StageStarted("latents", "Encoding", 4),
        StageFinished("latents", 4, 1.0),
        StageStarted("train", "Training", 10, "steps", 1),
        step(2),
        CheckpointSaved(2, "out/checkpoint-2", 0.1, 5),
        video(tmp_path),
        Noticed("warning", "careful"),
        Uploaded("checkpoint-2", "https://hub/x", 1.0),
        RunFinished(10, "finished"),
    )
    told.sink.close()
    bodies = [post.document for post in desk.posts]
    assert [body["type"] for body in bodies] == [
        "notification", "notification", "lifecycle.stage", "lifecycle.stage", "training.status", "training.status",
        "training.checkpoint", "training.validation", "notification", "training.status", "lifecycle.stage",
    ]  # fmt: skip
    assert all({"type", "severity", "job_id", "timestamp", "id"} <= body.keys() for body in bodies)
    assert len({body["id"] for body in bodies}) == len(bodies)
    running = bodies[5]
    assert running["data"] == {"status": "running", "global_step": 2, "current_epoch": 1}
    assert (running["progress"]["current"], running["progress"]["total"]) == (2, 10)
    assert (running["progress"]["percent"], running["progress"]["eta_seconds"]) == (20.0, 16.0)
    assert running["progress"]["metrics"]["loss"] == 0.5
    assert bodies[2]["stage"]["key"] == "init_vae_cache"
    assert bodies[3]["stage"]["status"] == "completed"
    assert bodies[6]["checkpoint"] == {"path": "out/checkpoint-2", "label": "checkpoint-2", "is_final": False}
    sample = bodies[7]
    assert sample["message"] == "Validation: cat"
    assert (sample["data"]["step"], sample["data"]["resolution"]) == (2, [64, 32])
    assert sample["videos"] == [
        {"src": "data:video/mp4;base64," + base64.b64encode(b"v" * 8).decode(), "mime_type": "video/mp4"}
    ]
    assert bodies[8]["severity"] == "warning"
    assert bodies[10]["stage"]["key"] == "training_complete"
    headers = {name.lower(): value for name, value in desk.posts[0].headers.items()}
    assert headers["x-api-key"] == SECRET
    assert headers["content-type"] == "application/json"


def test_discord_hears_people_s_words_and_sees_the_video(desk: Desk, tmp_path: Path) -> None:
    told = Told(tmp_path, discord(desk))
    told.tell(StageStarted("train", "Training", 10), step(1), step(2), video(tmp_path), Noticed("error", "x" * 3000))
    told.sink.close()
    assert len(desk.posts) == 3, "steps are no messages"
    first, sample, long = (post.body.decode() for post in desk.posts)
    assert "(`films night`) Training begins: step 0 of 10" in first
    assert 'name="file0"; filename="video0.mp4"' in sample
    assert "vvvvvvvv" in sample
    assert "poster" not in sample
    assert "@everyone" not in sample
    assert len(long.split("\r\n\r\n")[1].split("\r\n--")[0]) == 2000
    assert desk.posts[0].headers["Content-Type"].startswith("multipart/form-data; boundary=")


def test_a_video_too_large_for_discord_becomes_its_poster(desk: Desk, tmp_path: Path) -> None:
    told = Told(tmp_path, discord(desk, message_prefix="mine"))
    told.tell(video(tmp_path, 9_000_000))
    told.sink.close()
    assert 'filename="image0.png"' in desk.posts[0].body.decode()
    assert "(`mine`)" in desk.posts[0].body.decode()


def test_a_refused_video_is_told_without_it(desk: Desk, tmp_path: Path) -> None:
    desk.answers.append(Answer(413))
    told = Told(tmp_path, discord(desk))
    told.tell(video(tmp_path))
    told.sink.close()
    assert [post.status for post in desk.posts] == [413, 204]
    assert "filename" not in desk.posts[1].body.decode()
    assert told.texts == []


@pytest.mark.parametrize(("level", "heard"), [("debug", 3), ("info", 3), ("warning", 2), ("error", 1), ("critical", 0)])
def test_the_log_level_chooses(desk: Desk, tmp_path: Path, level: str, heard: int) -> None:
    told = Told(tmp_path, raw(desk, log_level=level))
    told.tell(Noticed("note", "n"), Noticed("warning", "w"), Noticed("error", "e"))
    told.sink.close()
    assert len(desk.posts) == heard


def test_two_errors_of_the_server_are_sat_out(desk: Desk, tmp_path: Path) -> None:
    desk.answers.extend([Answer(500), Answer(503)])
    told = Told(tmp_path, raw(desk))
    told.tell(Noticed("note", "one"), Noticed("note", "two"))
    told.sink.close()
    assert [post.status for post in desk.posts] == [500, 503, 204, 204]
    assert [post.document["message"] for post in desk.taken] == ["one", "two"]
    assert len({post.document["id"] for post in desk.posts[:3]}) == 1, "the same message keeps its id"
    assert told.texts == []


@pytest.mark.parametrize(
    "answer", [Answer(429, {"Retry-After": "0.4"}), Answer(429, body=json.dumps({"retry_after": 0.4}).encode())]
)
def test_a_busy_receiver_is_given_the_time_it_asks_for(desk: Desk, tmp_path: Path, answer: Answer) -> None:
    desk.answers.append(answer)
    told = Told(tmp_path, discord(desk))
    begun = time.monotonic()
    told.tell(Noticed("note", "one"))
    while not desk.taken and time.monotonic() - begun < 5:
        time.sleep(0.01)
    assert time.monotonic() - begun >= 0.4
    told.sink.close()
    assert [post.status for post in desk.posts] == [429, 204]


def test_a_hanging_receiver_holds_up_nobody_and_is_told_of_once(desk: Desk, tmp_path: Path) -> None:
    with webhook_server() as well:
        desk.always = Answer(204, stall=30.0)
        told = Told(tmp_path, raw(desk), raw(well), patience=Patience(0.1, 2, 0.02, 0.05, at_end=0.5))
        begun = time.monotonic()
        for number in range(1, 301):
            told.tell(step(number))
        assert time.monotonic() - begun < 1.0, "no call may wait for the network"
        time.sleep(1.0)
        told.sink.close()
        assert time.monotonic() - begun < 5.0
        assert len(told.texts) == 2, told.texts
        assert told.texts[0].startswith("warning: webhook 1 (raw) does not take messages (no answer in time)")
        assert any("webhook 1 (raw)" in text and "not delivered" in text for text in told.texts)
        steps = [post.document["data"]["global_step"] for post in well.posts]
        assert steps == list(range(1, 301))
        desk.always = None


def test_an_endpoint_that_comes_back_gets_what_waited(desk: Desk, tmp_path: Path) -> None:
    desk.always = Answer(500)
    told = Told(tmp_path, raw(desk), patience=Patience(0.3, 2, 0.02, 0.1, at_end=3.0))
    told.tell(*(Noticed("note", str(number)) for number in range(5)))
    limit = time.monotonic() + 5
    while not told.texts and time.monotonic() < limit:
        time.sleep(0.01)
    desk.always = None
    while len(told.texts) < 2 and time.monotonic() < limit:
        time.sleep(0.01)
    told.sink.close()
    messages = [post.document["message"] for post in desk.taken]
    assert messages[-1] == "4"
    assert messages == sorted(messages)
    lost = 5 - len(messages)
    assert lost >= 1
    assert told.texts == [
        "warning: webhook 1 (raw) does not take messages (HTTP 500); training goes on",
        f"note: webhook 1 (raw) takes messages again; {lost} were not delivered",
    ]


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_address_is_given_up_at_once(desk: Desk, tmp_path: Path, status: int) -> None:
    desk.always = Answer(status)
    told = Told(tmp_path, raw(desk))
    told.tell(*(Noticed("note", str(number)) for number in range(5)))
    told.sink.close()
    assert len(desk.posts) == 1
    assert len(told.texts) == 1
    assert f"refused a message (HTTP {status}) and is switched off" in told.texts[0]


def test_no_redirect_is_followed(desk: Desk, tmp_path: Path) -> None:
    with webhook_server() as elsewhere:
        desk.always = Answer(302, {"Location": f"{elsewhere.url}/stolen"})
        told = Told(tmp_path, raw(desk))
        told.tell(Noticed("note", "x"))
        told.sink.close()
        assert elsewhere.posts == []
        assert told.texts == ["warning: webhook 1 (raw): 1 messages were not delivered"]


def test_progress_of_a_stage_comes_now_and_then(desk: Desk, tmp_path: Path) -> None:
    told = Told(tmp_path, raw(desk))
    told.tell(StageStarted("latents", "Encoding", 1000), *(StageAdvanced("latents", n) for n in range(1000)))
    told.sink.close()
    assert len(desk.posts) == 2


def test_a_run_tells_its_webhooks_and_keeps_their_secrets(
    desk: Desk,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(webhook, "Patience", lambda: HASTY)
    desk.always = Answer(401)
    dead = raw(desk, callback_url=f"http://127.0.0.1:9/{SECRET}")
    with open_run(tmp_path, {}, "night", reporting=ReportingSection(), webhooks=(raw(desk), dead)) as run:
        run.emit(RunStarted("night", str(tmp_path)))
        time.sleep(0.2)
        run.emit(RunFinished(1, "stopped"))
    texts = [line["text"] for line in read_journal(tmp_path) if line["kind"] == "noticed"]
    assert any("webhook 1 (raw) refused a message (HTTP 401)" in text for text in texts)
    assert any("webhook 2 (raw)" in text for text in texts), "what is found out while closing is still told"
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json*"))
    assert SECRET not in written + caplog.text + "".join(capfd.readouterr())
    assert SECRET not in repr(dead)
