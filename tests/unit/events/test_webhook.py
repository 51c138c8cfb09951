"""Webhooks against real servers: what arrives, what faults do, and that training never waits."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from receiving_servers import Answer, Desk, secure_webhook_server, webhook_server

from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.config.webhook_file import Webhook, read_webhooks
from simpletuner.events import follower
from simpletuner.events.lines import read_lines
from simpletuner.events.run import open_run
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks import webhook
from simpletuner.events.sinks.journal import JournalSink, last_sequence, read_journal
from simpletuner.events.sinks.webhook import Patience, WebhookSink
from simpletuner.events.sinks.webhook_messages import Message
from simpletuner.events.sinks.webhook_post import Limits, send
from simpletuner.events.types import (
    CheckpointSaved,
    Event,
    Noticed,
    PhaseBegan,
    PhaseEnded,
    PreviewGenerated,
    RunFinished,
    RunStarted,
    StageAdvanced,
    StageFinished,
    StageStarted,
    StepFinished,
    StoryTold,
    TrainingBegan,
    Uploaded,
    VideoGenerated,
)

HASTY = Patience(
    connect=0.3, answer=0.3, attempts=4, first_pause=0.02, longest_pause=0.1, at_end=2.0, at_end_silent=0.5
)
SECRET = "canary-token"
DOCUMENT = {
    "options": {"any": {"lora_rank": {"value": 16, "origin": "x"}, "webhook_config": {"value": "***", "origin": "x"}}}
}


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
    """A journal with this sink behind it, and what the sink tells the run."""

    def __init__(self, folder: Path, *webhooks: Webhook, patience: Patience = HASTY) -> None:
        self.notices: list[Event] = []
        reporting = ReportingSection(tracker_project_name="films")
        context = SinkContext(folder, "night", DOCUMENT, reporting, webhooks, emit=self.notices.append)
        self._journal, self._sequence = JournalSink(folder), last_sequence(folder)
        self.sink = WebhookSink(context, patience)

    def tell(self, *events: Event) -> None:
        for event in events:
            self._sequence += 1
            self._journal.receive(event, self._sequence)
            self.sink.receive(event, self._sequence)

    def wait_for(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, self.texts
            time.sleep(0.01)

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
        PhaseBegan("init_load_base_model"),
        PhaseEnded("init_load_base_model", 2.0),
        TrainingBegan(1, 10, 1, 2, 8, 1, 2),
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
        "notification", "notification", "notification", *["lifecycle.stage"] * 5, "training.status",
        "training.status", "training.checkpoint", "training.validation", "notification", "training.status",
        "lifecycle.stage", "training.summary",
    ]  # fmt: skip
    assert all({"type", "severity", "job_id", "timestamp", "id"} <= body.keys() for body in bodies)
    assert len({body["id"] for body in bodies}) == len(bodies)
    assert [(body["stage"]["key"], body["stage"]["status"]) for body in bodies[3:8]] == [
        ("init_vae_cache", "running"), ("init_vae_cache", "completed"),
        ("init_cache_vae_processing_complete", "completed"),
        ("init_load_base_model", "running"), ("init_load_base_model", "completed"),
    ]  # fmt: skip
    settings, (opening, running) = bodies[1], bodies[8:10]
    assert settings["data"] == {"lora_rank": 16}, "secrets are left out"
    assert opening["data"] == {
        "status": "starting", "global_step": 1, "current_epoch": 1, "first_epoch": 1, "final_epoch": 2,
        "global_resume_step": 1, "total_num_batches": 8, "total_num_epochs": 2, "total_num_steps": 10,
        "total_batch_size": 2, "micro_batch_size": 1, "remaining_num_steps": 9,
    }  # fmt: skip
    assert running["data"] == {
        "status": "running", "global_step": 2, "current_epoch": 1, "first_epoch": 1, "final_epoch": 2,
        "global_resume_step": 1,
    }  # fmt: skip
    assert (running["progress"]["current"], running["progress"]["total"]) == (2, 10)
    assert (running["progress"]["percent"], running["progress"]["eta_seconds"]) == (20.0, 16.0)
    assert running["progress"]["metrics"]["loss"] == 0.5
    assert bodies[3]["stage"]["key"] == "init_vae_cache"
    assert bodies[4]["stage"]["status"] == "completed"
    assert bodies[10]["checkpoint"] == {"path": "out/checkpoint-2", "label": "checkpoint-2", "is_final": False}
    sample = bodies[11]
    assert sample["message"] == "Validation: cat"
    assert (sample["data"]["step"], sample["data"]["resolution"]) == (2, [64, 32])
    assert sample["videos"] == [
        {"src": "data:video/mp4;base64," + base64.b64encode(b"v" * 8).decode(), "mime_type": "video/mp4"}
    ]
    assert bodies[12]["severity"] == "warning"
    assert bodies[14]["stage"]["key"] == "training_complete"
    assert bodies[15]["data"]["outcome"] == "finished"
    headers = {name.lower(): value for name, value in desk.posts[0].headers.items()}
    assert headers["x-api-key"] == SECRET
    assert headers["content-type"] == "application/json"


def test_a_preview_is_a_still_and_a_moving_picture(desk: Desk, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 4), color) for color in ("red", "green")]
    frames[0].save(tmp_path / "p.gif", save_all=True, append_images=frames[1:], duration=80, loop=0)
    told = Told(tmp_path, raw(desk), discord(desk))
    told.tell(
        PreviewGenerated(100, "adapter", "cat", "a cat", 64, 32, 5, 20, 0.5, str(tmp_path / "p.gif")),
    )
    told.sink.close()
    (sample,) = [post.document for post in desk.posts if post.body.startswith(b"{")]
    assert (sample["type"], sample["title"], sample["body"]) == (
        "validation.image", "Validation (step 5/20): cat", "a cat"
    )  # fmt: skip
    assert sample["data"] == {
        "step": 5, "timestep": 500.0, "resolution": [64, 32], "validation_type": "adapter", "prompt": "a cat",
        "step_label": "step 5/20", "global_step": 100,
    }  # fmt: skip
    with Image.open(io.BytesIO(base64.b64decode(sample["images"][0]))) as still:
        assert (still.format, still.size, still.getpixel((0, 0))) == ("PNG", (8, 4), (255, 0, 0))
    assert sample["videos"][0]["src"].startswith("data:image/gif;base64,R0lGOD")
    assert any(b'filename="video0.gif"' in post.body for post in desk.posts)


def test_discord_hears_people_s_words_and_sees_the_video(desk: Desk, tmp_path: Path) -> None:
    told = Told(tmp_path, discord(desk))
    told.tell(TrainingBegan(0, 10, 1, 2, 8, 1, 2), step(1), step(2), video(tmp_path), Noticed("error", "x" * 3000))
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
    while not desk.taken and time.monotonic() - begun < 30:
        time.sleep(0.01)
    assert time.monotonic() - begun >= 0.4
    told.sink.close()
    assert [post.status for post in desk.posts] == [429, 204]


def test_a_hanging_receiver_holds_up_nobody_and_is_told_of(desk: Desk, tmp_path: Path) -> None:
    desk.always = Answer(204, stall=30.0)
    told = Told(tmp_path, raw(desk), patience=replace(HASTY, answer=0.3, attempts=1))
    begun = time.monotonic()
    for number in range(1, 301):
        told.tell(step(number))
    assert time.monotonic() - begun < 15.0, "no call may wait for the network"
    told.wait_for(lambda: told.texts)
    begun = time.monotonic()
    told.sink.close()
    assert time.monotonic() - begun < 15.0
    assert told.texts == [
        "warning: webhook 1 (raw) does not take messages (no answer in time); training goes on, what happens "
        "waits in the run folder",
        "warning: webhook 1 (raw): 300 events not delivered yet; they go out when the run is started again",
    ]
    desk.always = None


def test_a_dead_receiver_holds_up_no_other(desk: Desk, tmp_path: Path) -> None:
    dead = raw(desk, callback_url="http://127.0.0.1:9/")
    told = Told(tmp_path, dead, raw(desk), patience=replace(HASTY, attempts=1))
    told.tell(*(step(number) for number in range(1, 301)))
    told.wait_for(lambda: len(desk.posts) == 300)
    told.sink.close()
    assert [post.document["data"]["global_step"] for post in desk.posts] == list(range(1, 301))
    assert all("webhook 1 (raw)" in text for text in told.texts)


def test_the_end_says_that_it_waits_and_for_how_long(desk: Desk, tmp_path: Path) -> None:
    desk.always = Answer(204, stall=0.3)
    told = Told(tmp_path, raw(desk), patience=replace(HASTY, at_end=1.3))
    told.tell(*(step(number) for number in range(12)))
    begun = time.monotonic()
    told.sink.close()
    assert 1.2 < time.monotonic() - begun < 15.0
    assert "waiting up to 0 s for webhook 1 (raw) to take" in told.texts[0]
    assert "nothing is lost by it" in told.texts[0]
    assert "not delivered yet; they go out when the run is started again" in told.texts[1]


def test_the_next_start_sends_what_waited_and_nothing_twice(desk: Desk, tmp_path: Path) -> None:
    desk.answers.extend([Answer()] * 2)
    desk.always = None
    told = Told(tmp_path, raw(desk), patience=replace(HASTY, at_end=0.3))
    told.tell(*(Noticed("note", str(number)) for number in range(2)))
    told.wait_for(lambda: len(desk.taken) == 2)
    desk.always = Answer(503)
    told.tell(*(Noticed("note", str(number)) for number in range(2, 5)))
    told.sink.close()
    desk.always = None
    again = Told(tmp_path, raw(desk))
    again.tell(Noticed("note", "5"))
    again.sink.close()
    assert [post.document["message"] for post in desk.taken] == ["0", "1", "2", "3", "4", "5"]
    assert len({post.document["id"] for post in desk.taken}) == 6
    assert again.texts == []


def test_an_endpoint_that_comes_back_gets_everything_in_order(desk: Desk, tmp_path: Path) -> None:
    desk.always = Answer(502)
    told = Told(tmp_path, raw(desk), patience=replace(HASTY, attempts=2))
    told.tell(*(Noticed("note", str(number)) for number in range(5)))
    told.wait_for(lambda: told.texts)
    desk.always = None
    told.wait_for(lambda: len(told.texts) == 2)
    told.sink.close()
    assert [post.document["message"] for post in desk.taken] == ["0", "1", "2", "3", "4"]
    assert told.texts == [
        "warning: webhook 1 (raw) does not take messages (HTTP 502); training goes on, what happens waits in the run "
        "folder",
        "note: webhook 1 (raw) takes messages again",
    ]


def test_a_message_that_a_receiver_cannot_take_is_lost_and_counted(desk: Desk, tmp_path: Path) -> None:
    desk.answers.extend([Answer(500)] * 4 + [Answer(400)])
    told = Told(tmp_path, raw(desk))
    told.tell(*(Noticed("note", str(number)) for number in range(3)))
    told.wait_for(lambda: len(desk.taken) == 1)
    told.sink.close()
    assert [post.document["message"] for post in desk.taken] == ["2"]
    assert told.texts[-1] == (
        "warning: webhook 1 (raw): 1 event lost (HTTP 500 to every attempt), 1 event lost (it was refused with HTTP "
        "400)"
    )
    lines = list(read_lines(next((tmp_path / "delivery").iterdir())))
    assert [line["lost"] for line in lines if "why" in line] == [1, 2]


def test_an_answer_that_never_comes_is_no_reason_to_tell_a_chat_twice(desk: Desk, tmp_path: Path) -> None:
    desk.answers.append(Answer(204, stall=2.5))
    told = Told(tmp_path, discord(desk), raw(desk), patience=replace(HASTY, answer=1.0))
    told.tell(Noticed("note", "first"))
    told.wait_for(lambda: len(desk.posts) >= 1)
    told.tell(Noticed("note", "second"))
    told.sink.close()
    chat = [post.body.decode() for post in desk.posts if "multipart" in post.headers.get("Content-Type", "")]
    assert len([text for text in chat if "first" in text]) <= 1
    assert len([text for text in chat if "second" in text]) == 1


def test_an_answer_that_never_comes_makes_a_raw_repeat_that_says_so(desk: Desk, tmp_path: Path) -> None:
    desk.answers.append(Answer(204, stall=2.5))
    told = Told(tmp_path, raw(desk), patience=replace(HASTY, answer=1.0))
    told.tell(Noticed("note", "first"))
    told.wait_for(lambda: len(desk.posts) == 2)
    told.sink.close()
    repeat, late = sorted((post.document for post in desk.posts), key=lambda body: "is_repeat" not in body)
    assert repeat == late | {"is_repeat": True}
    assert told.texts == []


def test_a_storm_of_progress_is_coalesced_but_nothing_else_is(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "WINDOW", 100)
    monkeypatch.setattr(webhook, "WINDOW", 100)
    desk.answers.append(Answer(204, stall=0.2))
    told = Told(tmp_path, raw(desk))
    told.tell(Noticed("note", "x"))
    told.tell(*(step(number) for number in range(500)), CheckpointSaved(2, "out/checkpoint-2", 0.1, 5))
    told.wait_for(lambda: any("checkpoint" in post.document for post in desk.posts))
    told.sink.close()
    steps = [post.document["data"]["global_step"] for post in desk.posts if "data" in post.document]
    assert steps == sorted(steps)
    assert steps[-1] == 499
    assert 90 < len(steps) < 210
    assert told.texts == []


def test_a_connection_kept_alive_drop_by_drop_is_cut(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                for letter in b"HTTP/1.1 204 " + b"x" * 1000:
                    connection.sendall(bytes([letter]))
                    time.sleep(0.02)

        threading.Thread(target=drip, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        hook = read_webhooks({"webhook_type": "raw", "callback_url": address}, "test").webhooks[0]
        begun = time.monotonic()
        reply = send(hook, Message("info", {"type": "notification"}), "1", "", Limits(1.0, 0.3), with_media=False)
        assert time.monotonic() - begun < 15.0, "it would take 20 seconds"
    assert (reply.status, reply.reason, reply.is_unclear) == (0, "no answer in time", True)


@pytest.mark.parametrize("verified", [True, False])
def test_a_wrong_certificate_is_refused_unless_it_is_allowed(tmp_path: Path, verified: bool) -> None:
    with secure_webhook_server(tmp_path) as desk:
        told = Told(tmp_path, raw(desk, ssl_no_verify=not verified))
        told.tell(Noticed("note", "first"))
        if verified:
            told.wait_for(lambda: told.texts)
            assert "its certificate is not trusted" in told.texts[0]
        told.sink.close()
        assert len(desk.posts) == (0 if verified else 1)


def test_a_list_of_types_chooses(desk: Desk, tmp_path: Path) -> None:
    told = Told(tmp_path, raw(desk, events=["training.checkpoint", "training.summary"]))
    told.tell(RunStarted("night", "out"), step(1), CheckpointSaved(1, "checkpoint-1", 1.0, 1), RunFinished(1, "failed"))
    told.sink.close()
    assert [post.document["type"] for post in desk.posts] == ["training.checkpoint", "training.summary"]


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
        assert told.texts == ["warning: webhook 1 (raw): 1 event lost (it was refused with HTTP 302)"]


def test_progress_of_a_stage_comes_now_and_then(desk: Desk, tmp_path: Path) -> None:
    told = Told(tmp_path, raw(desk))
    told.tell(StageStarted("latents", "Encoding", 1000), *(StageAdvanced("latents", n) for n in range(1000)))
    told.sink.close()
    assert 2 <= len(desk.posts) < 20  # one a second, and a busy machine may need seconds to tell them


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
