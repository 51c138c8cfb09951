"""Trackers, read back by their own libraries; and which of them a configuration asks for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.config.webhook_file import Webhook
from simpletuner.core.errors import UserError
from simpletuner.events import choice
from simpletuner.events.choice import chosen_sinks
from simpletuner.events.run import open_run
from simpletuner.events.sinks.journal import read_journal
from simpletuner.events.types import RunFinished, RunStarted, StepFinished, VideoGenerated
from simpletuner.validation.video_file import write_still, write_video

DOCUMENT = {
    "options": {
        "adapter": {"lora_rank": {"value": 16, "origin": "command line"}},
        "reporting": {"webhook_config": {"value": "***", "origin": "command line"}},
    }
}


def test_report_to_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(report_to: str, **more: Any) -> tuple[str, ...]:
        return chosen_sinks(ReportingSection(report_to=report_to, **more))

    monkeypatch.setattr(choice, "is_installed", lambda name: name != "wandb")
    assert names("none") == names("") == names("simpletuner") == ()
    assert names("WandB, tensorboard") == ("tensorboard", "wandb")
    assert names("all") == ("tensorboard",)
    assert names("none", push_to_hub=True) == names("none", push_checkpoints_to_hub=True) == ("hub",)
    receiver = Webhook(webhook_type="raw", callback_url="http://localhost")
    assert chosen_sinks(ReportingSection(), (receiver,)) == ("webhook",)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(choice, "is_installed", lambda name: False)
    settings = ReportingSection(report_to="wandb,tensorboard")
    with (
        pytest.raises(UserError, match=r"simpletuner\[wandb\]") as caught,
        open_run(tmp_path / "run", {}, "night", reporting=settings),
    ):
        pytest.fail("it must not begin")
    assert len(caught.value.problems) == 2
    assert not (tmp_path / "run").exists()


def play(folder: Path, report_to: str, first: int, last: int, resumed_from: str = "") -> None:
    """A start of a run that does the steps `first` to `last` and shows one video at its end."""
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 64, 3), dtype=np.uint8)
    path = folder / "validation_videos" / f"step_{last}_cat_64x32.mp4"
    write_video(path, frames, 25.0)
    write_still(path.with_suffix(".png"), frames[0])
    with open_run(folder, DOCUMENT, "night", reporting=ReportingSection(report_to=report_to)) as run:
        run.emit(RunStarted("night", str(folder), resumed_from))
        for number in range(first, last + 1):
            terms = {"flow": float("nan") if number == 2 else 0.5}
            run.emit(StepFinished(number, 1, 1 / number, 1e-4, 0.7, 2, 336, 0.5, 1000, terms))
        run.emit(VideoGenerated(last, "adapter", "cat", "a cat", 64, 32, 9, 25.0, 42, str(path), 1.0))
        run.emit(RunFinished(last, "stopped"))


def warnings_of(folder: Path) -> list[str]:
    return [line["text"] for line in read_journal(folder) if line["kind"] == "noticed" and line["severity"] != "note"]


def test_tensorboard_reads_curves_posters_and_settings(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    play(tmp_path, "tensorboard", 1, 6)
    play(tmp_path, "tensorboard", 5, 8, "out/checkpoint-4")
    assert warnings_of(tmp_path) == []
    found = accumulator.EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    found.Reload()
    losses = found.Scalars("train_loss")
    assert [(item.step, round(item.value, 4)) for item in losses] == [
        (number, round(1 / number, 4)) for number in range(1, 9)
    ]
    assert {"learning_rate", "epoch", "grad_norm", "loss/flow"} <= set(found.Tags()["scalars"])
    assert 2 not in [item.step for item in found.Scalars("loss/flow")], "a number that is none is left out"
    assert [image.step for image in found.Images("cat - 64x32")] == [8]
    assert found.Images("cat - 64x32")[0].encoded_image_string.startswith(b"\x89PNG")
    text = found.Tensors("settings")[0].tensor_proto.string_val[0].decode()
    assert '"lora_rank": 16' in text
    assert "webhook_config" not in text


@pytest.fixture
def wandb_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login, no settings of whoever runs the tests."""
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))


def records_of(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, which begins with seven bytes of W&B's own."""
    position, parts = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def history(folder: Path) -> tuple[list[dict[str, str]], dict[str, str], str]:
    """(rows of the history, settings, id) of one offline record, decoded by the library's own messages."""
    from wandb.proto import wandb_internal_pb2

    rows: list[dict[str, str]] = []
    config: dict[str, str] = {}
    identity = ""
    for data in records_of(next(folder.glob("*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            rows.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
        elif kind == "run":
            identity = record.run.run_id
            config |= {item.key: item.value_json for item in record.run.config.update}
    return rows, config, identity


@pytest.mark.usefixtures("wandb_alone")
def test_wandb_records_offline_without_a_login_and_goes_on_in_the_same_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    play(folder, "wandb", 1, 4)
    time.sleep(1.1)  # W&B names its folders by the second
    play(folder, "wandb", 3, 6, "out/checkpoint-2")
    assert warnings_of(folder) == []
    notes = [line["text"] for line in read_journal(folder) if line["kind"] == "noticed"]
    assert len(notes) == 2
    assert all("nobody is logged in" in note and "wandb sync" in note for note in notes)
    records = sorted((folder / "logs" / "wandb").glob("offline-run-*"))
    assert len(records) == 2
    (first, settings, one), (second, _, other) = (history(record) for record in records)
    assert one == other
    assert settings["lora_rank"] == "16"
    assert "webhook_config" not in settings
    assert [int(row["_step"]) for row in first] == [1, 2, 3, 4]
    assert [int(row["_step"]) for row in second] == [5, 6], "steps that W&B has are not given twice"
    assert float(first[3]["train_loss"]) == 0.25
    sample = next(value for key, value in first[3].items() if key.startswith("cat - 64x32"))
    assert sample
    assert [path.suffix for path in records[0].rglob("media/videos/*")] == [".mp4"]


@pytest.mark.usefixtures("wandb_alone")
def test_a_tracker_that_breaks_is_told_of_once_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    (folder / "wandb_run.json" / "in the way").mkdir(parents=True)
    play(folder, "wandb,tensorboard", 1, 3)
    found = warnings_of(folder)
    assert len([text for text in found if "the sink 'wandb' failed and is switched off" in text]) == 1
    assert list((folder / "logs" / "tensorboard").iterdir())
    assert len([line for line in read_journal(folder) if line["kind"] == "step_finished"]) == 3
