"""Trackers, read back by their own libraries; and which of them a configuration asks for."""

from __future__ import annotations

import json
import time
import zipfile
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
from simpletuner.events.lines import read_lines
from simpletuner.events.run import open_run
from simpletuner.events.sinks.custom_tracker import find_tracker
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
    assert names("none") == names("") == ()
    assert names("simpletuner") == ("simpletuner",)
    assert names("WandB, tensorboard") == ("tensorboard", "wandb")
    assert names("all") == ("simpletuner", "tensorboard", "comet_ml"), "not one that needs a file of one's own"
    assert names("custom-tracker,all")[-1] == "custom-tracker"
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


def play(folder: Path, report_to: str, first: int, last: int, resumed_from: str = "", **more: Any) -> None:
    """A start of a run that does the steps `first` to `last` and shows one video at its end."""
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 64, 3), dtype=np.uint8)
    path = folder / "validation_videos" / f"step_{last}_cat_64x32.mp4"
    write_video(path, frames, 25.0)
    write_still(path.with_suffix(".png"), frames[0])
    with open_run(folder, DOCUMENT, "night", reporting=ReportingSection(report_to=report_to, **more)) as run:
        run.emit(RunStarted("night", str(folder), resumed_from))
        for number in range(first, last + 1):
            terms = {"flow": float("nan") if number == 2 else 0.5}
            run.emit(StepFinished(number, 1, 1 / number, 1e-4, 0.7, 2, 336, 0.5, 1000, terms))
        measures = {"flicker": 0.25}
        run.emit(
            VideoGenerated(last, "adapter", "cat", "a cat", 64, 32, 9, 25.0, 42, str(path), 1.0, measures=measures)
        )
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
    assert [(item.step, item.value) for item in found.Scalars("measures/cat - 64x32/flicker")] == [(8, 0.25)]
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
def test_wandb_shows_videos_as_a_table(tmp_path: Path) -> None:
    play(tmp_path, "wandb", 1, 2, tracker_image_layout="table")
    assert warnings_of(tmp_path) == []
    rows, _, _ = history(next((tmp_path / "logs" / "wandb").glob("offline-run-*")))
    shown = " ".join(value for row in rows for key, value in row.items() if key.startswith("validation"))
    assert "table-file" in shown
    (table,) = (tmp_path / "logs" / "wandb").rglob("validation_*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"][:2] == ["step", "prompt"]
    assert content["data"][0][:5] == [2, "cat", "a cat", "64x32", "adapter"]


def test_the_files_for_other_programs_tell_each_step_once(tmp_path: Path) -> None:
    play(tmp_path, "simpletuner", 1, 4)
    play(tmp_path, "simpletuner", 3, 6, "out/checkpoint-2")
    assert warnings_of(tmp_path) == []
    lines = list(read_lines(tmp_path / "training_metrics.jsonl"))
    assert [line["step"] for line in lines if "train_loss" in line["metrics"]] == [1, 2, 3, 4, 5, 6]
    assert lines[1]["metrics"]["loss/flow"] is None, "a number that is none"
    manifest = json.loads((tmp_path / "training_metrics.json").read_text())
    assert (manifest["run"], manifest["status"], manifest["config"]) == ("night", "ended", {"lora_rank": 16})
    assert {"train_loss", "measures/cat - 64x32/flicker"} <= set(manifest["metrics"])
    media = list(read_lines(tmp_path / "validation_media.jsonl"))
    assert [(line["step"], line["path"]) for line in media] == [
        (4, "step_4_cat_64x32.mp4"), (6, "step_6_cat_64x32.mp4")
    ]  # fmt: skip


OWN_TRACKER = """
import json
from accelerate.tracking import GeneralTracker
class Diary(GeneralTracker):
    name = "diary"
    requires_logging_directory = True
    def __init__(self, run_name, logging_dir, **more):
        super().__init__()
        self.file = open(f"{logging_dir}/diary.jsonl", "a", encoding="utf-8")
        self.say("begin", run_name)
    @property
    def tracker(self):
        return self.file
    def say(self, *words):
        self.file.write(json.dumps(words) + "\\n")
    def store_init_configuration(self, values):
        self.say("settings", values)
    def log(self, values, step, **more):
        self.say(step, values.get("train_loss"))
    def finish(self):
        self.say("end")
        self.file.close()
"""


@pytest.mark.needs_torch
def test_a_tracker_of_one_s_own_is_told(tmp_path: Path) -> None:
    own = tmp_path / "diary.py"
    own.write_text(OWN_TRACKER)
    play(tmp_path / "run", "custom-tracker", 1, 2, custom_tracker=str(own))
    assert warnings_of(tmp_path / "run") == []
    lines = [json.loads(line) for line in (tmp_path / "run" / "logs" / "diary.jsonl").read_text().splitlines()]
    assert lines == [
        ["begin", "night"], ["settings", {"lora_rank": 16}], [1, 1.0], [2, 0.5], [2, None], ["end"]
    ]  # fmt: skip


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "holds 0 subclasses of GeneralTracker"),
        (OWN_TRACKER + "class Second(Diary):\n    pass\n", "holds 2 subclasses"),
        (OWN_TRACKER.replace("def log", "def lock"), "lacks log"),
    ],
)
def test_a_tracker_file_that_is_none_is_told(tmp_path: Path, text: str, told: str) -> None:
    own = tmp_path / "own.py"
    own.write_text(text)
    with pytest.raises(UserError, match=told):
        find_tracker(own)


@pytest.mark.needs_torch
def test_comet_records_offline_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("comet_ml")
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    monkeypatch.setenv("COMET_CONFIG", str(tmp_path / "none"))
    play(tmp_path, "comet_ml", 1, 3)
    play(tmp_path, "comet_ml", 3, 4, "out/checkpoint-2")
    assert warnings_of(tmp_path) == []
    archives = sorted((tmp_path / "logs" / "comet").glob("*.zip"), key=lambda path: path.stat().st_mtime)
    assert len(archives) == 2
    told: list[dict[str, Any]] = []
    keys = set()
    for archive in archives:
        with zipfile.ZipFile(archive) as content:
            told += [json.loads(line) for line in content.read("messages.json").splitlines()]
            keys.add(json.loads(content.read("experiment.json"))["offline_id"])
    assets = [line["payload"].get("additional_params", {}) for line in told]
    assert [(a["fileName"], a["step"]) for a in assets if a.get("type") == "video"] == [
        ("cat - 64x32", 3), ("cat - 64x32", 4)
    ]  # fmt: skip
    assert len(list((tmp_path / "validation_videos").iterdir())) == 4, "nothing of the run folder is taken away"
    metrics = [line["payload"]["metric"] for line in told if line["type"] == "metric_msg"]
    assert [(m["metricName"], m["metricValue"]) for m in metrics if m["metricName"] == "train_loss"] == [
        ("train_loss", 1.0), ("train_loss", 0.5), ("train_loss", 1 / 3), ("train_loss", 0.25)
    ]  # fmt: skip
    assert len(keys) == 1


@pytest.mark.usefixtures("wandb_alone")
def test_a_tracker_that_breaks_is_told_of_once_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    (folder / "logs").mkdir(parents=True)
    (folder / "wandb_run.json" / "in the way").mkdir(parents=True)
    play(folder, "wandb,tensorboard", 1, 3)
    found = warnings_of(folder)
    assert len([text for text in found if "the sink 'wandb' failed and is switched off" in text]) == 1
    assert list((folder / "logs" / "tensorboard").iterdir())
    assert len([line for line in read_journal(folder) if line["kind"] == "step_finished"]) == 3
