"""Publishing to a bucket: a real small store, its faults, and what a second start sends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from receiving_servers import Answer, Desk, store_server

from simpletuner.config.publishing_file import PublishingPlace, read_publishing
from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.core.errors import Severity
from simpletuner.events.run import open_run
from simpletuner.events.sinks import s3
from simpletuner.events.sinks.journal import read_journal
from simpletuner.events.sinks.publisher import PublishPatience
from simpletuner.events.types import CheckpointSaved, RunFinished, RunStarted

pytest.importorskip("boto3")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Desk]:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(s3, "PublishPatience", lambda: PublishPatience(6, 0.02, 0.1, 60.0, 60.0))
    with store_server() as desk:
        yield desk


def place(store: Desk, **settings: Any) -> PublishingPlace:
    entry = {"provider": "s3", "bucket": "films", "region": "us-east-1", "access_key": "AKIDTESTING",
             "secret_key": "canary-secret", "endpoint_url": store.url, **settings}  # fmt: skip
    reading = read_publishing(entry, "test")
    assert reading.problems == ()
    return reading.places[0]


def play(folder: Path, *places: PublishingPlace, first: bool = True) -> list[dict[str, Any]]:
    document = {"options": {"reporting": {"publishing_config": {"value": "***", "origin": "x"}}}}
    with open_run(folder, document, "night shift", reporting=ReportingSection(), places=places) as run:
        run.emit(RunStarted("night shift", str(folder), "" if first else "checkpoint-5"))
        if first:
            checkpoint = folder / "checkpoint-5"
            checkpoint.mkdir()
            for name in ("pytorch_lora_weights.safetensors", "checkpoint_manifest.json", "optimizer.safetensors"):
                (checkpoint / name).write_bytes(b"five " + name.encode())
            run.emit(CheckpointSaved(5, str(checkpoint), 1.0, 4))
            (folder / "pytorch_lora_weights.safetensors").write_bytes(b"ten")
            run.emit(RunFinished(10, "finished"))
    lines = list(read_journal(folder))
    assert "canary" not in str(lines)
    return lines


def warnings_of(lines: list[dict[str, Any]]) -> list[str]:
    return [line["text"] for line in lines if line["kind"] == "noticed" and line["severity"] == "warning"]


def test_checkpoints_and_the_result_arrive_whole(store: Desk, tmp_path: Path) -> None:
    lines = play(tmp_path, place(store, base_path="runs/one", public_base_url="https://cdn.example/films/"))
    assert warnings_of(lines) == []
    told = [(line["what"], line["address"], line["target"]) for line in lines if line["kind"] == "uploaded"]
    assert told == [
        ("checkpoint-5", "https://cdn.example/films/runs/one", "the bucket 'films'"),
        ("the finished weights", "https://cdn.example/films/runs/one", "the bucket 'films'"),
    ]
    assert store.files["runs/one/checkpoint-5/optimizer.safetensors"] == b"five optimizer.safetensors"
    assert store.files["runs/one/pytorch_lora_weights.safetensors"] == b"ten"
    puts = [post.path.split("?")[0] for post in store.posts if post.method == "PUT"]
    before_the_result = puts[: puts.index("/films/runs/one/checkpoint-5/checkpoint_manifest.json") + 1]
    assert len(before_the_result) == 6, "the manifest of a checkpoint goes last"


def test_errors_and_silence_are_sat_out_and_nothing_is_sent_twice(store: Desk, tmp_path: Path) -> None:
    store.answers.extend([Answer(500), Answer(0), Answer(0), Answer(503), Answer(429)])
    lines = play(tmp_path, place(store))
    assert [line["what"] for line in lines if line["kind"] == "uploaded"] == ["checkpoint-5", "the finished weights"]
    puts = [post.path.split("?")[0] for post in store.posts if post.method == "PUT" and post.status == 200]
    weights = [path for path in puts if "checkpoint-5" in path]
    assert len(weights) == len(set(weights)) == 3
    assert all(path.startswith("/films/night-shift/") for path in puts)


def test_a_dead_store_ends_nothing_and_the_next_start_goes_on(store: Desk, tmp_path: Path) -> None:
    store.always = Answer(503)
    lines = play(tmp_path, place(store))
    assert [line for line in lines if line["kind"] == "uploaded"] == []
    assert "uploading checkpoint-5 to the bucket 'films' fails: the store answered" in warnings_of(lines)[0]
    assert "not uploaded to the bucket 'films' yet: checkpoint-5" in warnings_of(lines)[1]
    store.always = None
    lines = play(tmp_path, place(store), first=False)
    assert [line["what"] for line in lines if line["kind"] == "uploaded"] == ["checkpoint-5", "the finished weights"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"access_key": "AKIDOTHER"}, "the keys may not write there"),
        ({"bucket": "other"}, "there is no such bucket"),
    ],
)
def test_what_cannot_work_is_known_before(store: Desk, settings: dict[str, str], told: str) -> None:
    (target,) = s3.targets((place(store, **settings),), "night")
    (problem,) = target.examine("here")
    assert problem.severity is Severity.ERROR
    assert told in problem.what


def test_a_store_that_cannot_be_asked_is_no_error(store: Desk) -> None:
    (target,) = s3.targets((place(store, endpoint_url="http://127.0.0.1:9"),), "night")
    (problem,) = target.examine("here")
    assert (problem.severity, "cannot be reached" in problem.what) == (Severity.WARNING, True)
    (target,) = s3.targets((place(store),), "night")
    assert target.examine("here") == []


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"provider": "azure_blob", "container": "x"}, "It speaks a protocol of its own"),
        ({"provider": "b2", "bucket": "films"}, "region is missing"),
        ({"provider": "s3-compatibel", "bucket": "films"}, "Did you mean 's3-compatible'?"),
        ({"bucket": "films"}, "provider is missing"),
        ({"provider": "s3"}, "bucket is missing"),
        ({"provider": "s3", "bucket": "films", "secret_key": "canary"}, "They belong together"),
        ({"provider": "s3", "bucket": "films", "buckt": 1}, "unknown key 'buckt'"),
        ({"provider": "s3", "bucket": "films", "endpoint_url": "films.example"}, "endpoint_url is no web address"),
        ("films", "a place is one object"),
    ],
)
def test_entries_that_cannot_be_used_are_told(entry: Any, told: str) -> None:
    text = " ".join(str(problem) for problem in read_publishing([entry], "here").problems)
    assert told in text
    assert "canary" not in text
