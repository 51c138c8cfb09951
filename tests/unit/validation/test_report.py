"""The report: from the run folder alone, safe to open, true about what happened."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from simpletuner.core.errors import UserError
from simpletuner.events.run import open_run
from simpletuner.events.types import (
    CheckpointSaved,
    Noticed,
    RunFinished,
    RunStarted,
    StepFinished,
    StoryTold,
    VideoGenerated,
)
from simpletuner.validation.loss_plot import smooth
from simpletuner.validation.report import run_title, write_report
from simpletuner.validation.run_record import read_run
from simpletuner.validation.video_file import write_still, write_video

QUIET = ("journal", "metrics")
NASTY = '<script>alert("x")</script> & a cat, see http://example.com/?a=1'
DOCUMENT = {
    "options": {
        "adapter": {"lora_rank": {"value": 8, "origin": "config/config.json:4"}},
        "model": {
            "model_type": {"value": "lora", "origin": "config/config.json:2"},
            "model_flavour": {"value": "0.9.5", "origin": "default"},
            "pretrained_model_name_or_path": {"value": "some/model", "origin": "command line"},
        },
        "schedule": {"max_train_steps": {"value": 40, "origin": "config/config.json:9"}},
    }
}


class Page(HTMLParser):
    """Addresses, tags and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "poster") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def emit_video(
    run: Any, step: int, weights: str, level: int, prompt: str = NASTY, measures: dict[str, float] | None = None
) -> None:
    name = ("base" if weights == "base" else f"step_{step}") + "_cat#1_64x64.mp4"
    path = run.folder / "validation_videos" / name
    frames = np.full((9, 64, 64, 3), level, np.uint8)
    write_video(path, frames, 25.0)
    write_still(path.with_suffix(".png"), frames[4])
    run.emit(VideoGenerated(step, weights, "cat#1", prompt, 64, 64, 9, 25.0, 1, str(path), 1.0, 1, measures or {}))  # type: ignore[arg-type]  # fmt: skip


def make_run(folder: Path, steps: int = 40, *, ends: bool = True, resumed_from: str = "") -> None:
    with open_run(folder, DOCUMENT, "demo", seed=7, sinks=QUIET) as run:
        run.emit(RunStarted("demo", str(folder), resumed_from))
        run.emit(StoryTold("Clips", (("found", "6"), ("left out", "<b>one</b>"))))
        run.emit(Noticed("warning", "a <i>clip</i> is left out"))
        emit_video(run, 0, "base", 60, measures={"motion": 4.0})
        for step in range(1, steps + 1):
            terms = {"loss/sigma_0.00-0.25": 2 / step, "loss/sigma_0.75-1.00": 1 / step, "crepa": 0.1}
            run.emit(StepFinished(step, 1, 1 / step, 1e-4, 0.5, 2, 336, 0.25, 2_000_000_000, terms))
        emit_video(run, steps // 2, "adapter", 120)
        emit_video(run, steps, "adapter", 180, measures={"motion": 6.0, "likeness": 0.5})
        run.emit(CheckpointSaved(steps, str(folder / f"checkpoint-{steps}"), 0.1, 1000))
        if ends:
            run.emit(RunFinished(steps, "finished"))
    Image.new("RGB", (20, 20)).save(folder / "contact_sheet.png")
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"x" * 2000)
    (folder / f"checkpoint-{steps}").mkdir(exist_ok=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_run(tmp_path / "run")
    return tmp_path / "run"


def test_the_page_asks_nothing_of_any_network_and_every_file_exists(folder: Path) -> None:
    page = Page(write_report(folder, title="Demo").read_text(encoding="utf-8"))
    assert page.addresses
    for address in page.addresses:
        assert "//" not in address
        assert ":" not in address
        assert (folder / unquote(address)).exists(), address
    assert "link" not in page.tags
    assert "iframe" not in page.tags


def test_texts_of_others_stay_texts(folder: Path) -> None:
    page = Page(write_report(folder, title="<b>Demo</b>").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert "i" not in page.tags
    assert NASTY in page.text
    assert "<b>Demo</b>" in page.text
    assert "<b>one</b>" in page.text


def test_the_page_shows_what_was_trained_and_made(folder: Path) -> None:
    page = Page(write_report(folder, title="Demo").read_text(encoding="utf-8"))
    for part in ("Finished", "LoRA of rank 8 for LTX-Video 0.9.5: 40 steps", "of 40", "0.25 s", "80", "2.0 GB",
                 "Before: base model", "After: step 40", "step 20", "config/config.json:4", "command line",
                 'from_pretrained("some/model"', 'weight_name="pytorch_lora_weights.safetensors"',
                 "the trained adapter"):  # fmt: skip
        assert part in page.text, part
    assert "model_flavour" not in page.text  # a default is no news
    told, tile = re.search(r"fell by \S+ from ([0-9.]+)", page.text), re.search(r"(\d\.\d{4}) at the start", page.text)
    assert told is not None
    assert tile is not None
    assert float(told[1].rstrip(".")) == pytest.approx(float(tile[1]), rel=6e-3)  # one figure, two places
    assert page.tags.count("video") == 2


def test_the_plots_and_strips_are_made(folder: Path) -> None:
    write_report(folder, title="Demo")
    sheets = ("before_after_cat#1_64x64", "over_time_cat#1_64x64", "grid")
    for name in ("loss.png", *(f"validation_videos/{sheet}.png" for sheet in sheets)):
        with Image.open(folder / name) as image:
            assert min(image.size) > 100, name


def test_curves_measures_and_time_are_drawn_into_the_page(folder: Path) -> None:
    html = write_report(folder, title="Demo").read_text(encoding="utf-8")
    page = Page(html)
    for part in ("Loss by noise level", "0.00 to 0.25", "0.75 to 1.00", "Learning rate", "Gradient norm", "Motion",
                 "Where the time went", "training steps", "Seconds per step", "Memory", "The loss fell"):  # fmt: skip
        assert part in page.text, part
    assert "Likeness to the base" not in page.text  # one point is no curve
    assert page.tags.count("svg") == 7
    assert "Loss on clips that are not trained" not in page.text


def test_held_out_losses_get_a_curve_where_there_are_any(folder: Path) -> None:
    lines = [
        {"sequence": 900 + step, "start": 1, "time": "2030-03-01T12:00:00.000Z", "kind": "loss_evaluated",
         "step": step, "weights": weights, "loss": loss, "losses": {"held-out": loss}, "decides": weights == "ema",
         "sigmas": [0.25, 0.75], "by_level": {"held-out": [loss - 0.1, loss + 0.1]}, "yardstick": yardstick}
        for step, loss, weights, yardstick in (
            (10, 0.9, "ema", "old"), (10, 0.7, "adapter", "new"), (10, 0.6, "ema", "new"), (20, 0.5, "ema", "new")
        )
    ]  # fmt: skip
    with (folder / "journal.jsonl").open("a", encoding="utf-8") as journal:
        journal.writelines(json.dumps(line) + "\n" for line in lines)
    found = read_run(folder).evaluations
    assert [(one.curve, one.step, one.loss, one.decides) for one in found] == [
        ("held-out", 10, 0.6, True), ("held-out", 20, 0.5, True), ("held-out, trained weights", 10, 0.7, False)
    ]  # fmt: skip
    assert found[1].levels == ((0.25, pytest.approx(0.4)), (0.75, pytest.approx(0.6)))
    text = Page(write_report(folder, title="Demo").read_text(encoding="utf-8")).text
    assert "Loss on clips that are not trained" in text
    assert "The same by noise level" in text
    assert "Held-out loss" in text


def test_the_name_of_a_run_is_its_own_or_that_of_its_folder(folder: Path, tmp_path: Path) -> None:
    assert run_title(folder) == "demo"
    assert run_title(tmp_path) == tmp_path.name


def test_a_moved_folder_still_shows_its_videos(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder, tmp_path / "elsewhere")
    page = Page(write_report(tmp_path / "elsewhere", title="Demo").read_text(encoding="utf-8"))
    assert page.tags.count("video") == 2


def test_a_run_without_an_end_is_not_called_finished_nor_a_lycoris_adapter_a_lora(tmp_path: Path) -> None:
    make_run(tmp_path, ends=False)
    adapter = {**DOCUMENT["options"]["adapter"], "lora_type": {"value": "lycoris", "origin": "config/config.json:5"}}
    document = {"options": {**DOCUMENT["options"], "adapter": adapter}}
    (tmp_path / "resolved_config.json").write_text(json.dumps(document), encoding="utf-8")
    record = read_run(tmp_path)
    assert (record.outcome, record.last_step, record.checkpoints) == ("unfinished", 40, (40,))
    text = Page(write_report(tmp_path, title="Demo").read_text(encoding="utf-8")).text
    assert "Not finished yet" in text
    assert "the checkpoint of step 40" in text
    assert "LyCORIS adapter for LTX-Video 0.9.5: 40 steps" in text


def test_a_resumed_run_is_one_story(tmp_path: Path) -> None:
    make_run(tmp_path, 20)
    make_run(tmp_path, 40, resumed_from="checkpoint-20")
    record = read_run(tmp_path)
    assert record.starts == 2
    assert [clip.step for clip in record.sights[0].history] == [10, 20, 40]
    assert record.notices == (("warning", "a <i>clip</i> is left out"),)


def test_what_was_told_while_planning_belongs_to_its_own_start(tmp_path: Path) -> None:
    make_run(tmp_path, 20)
    with open_run(tmp_path, DOCUMENT, "demo", sinks=QUIET) as run:
        run.emit(StoryTold("Clips", (("found", "7"),)))
        run.emit(RunStarted("demo", str(tmp_path), "checkpoint-20"))
        run.emit(RunFinished(25, "stopped"))
    record = read_run(tmp_path)
    assert record.story == (("Clips", (("found", "7"),)),)
    assert (record.starts, record.outcome, record.last_step) == (2, "stopped", 25)
    lines = (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    day_later = [line.replace('"time":"2', '"time":"3') if '"start":2' in line else line for line in lines]
    (tmp_path / "journal.jsonl").write_text("\n".join(day_later) + "\n", encoding="utf-8")
    assert read_run(tmp_path).wall_seconds < 60  # the pause between the starts is not counted


def test_a_start_that_failed_while_planning_changes_nothing(folder: Path) -> None:
    before = read_run(folder)
    with open_run(folder, DOCUMENT, "demo", sinks=QUIET) as run:
        run.emit(Noticed("warning", "the data folder is empty"))
    after = read_run(folder)
    assert (after.outcome, after.last_step, after.story) == (before.outcome, before.last_step, before.story)
    assert (after.starts, after.wall_seconds, after.sights) == (before.starts, before.wall_seconds, before.sights)


def test_a_fresh_start_forgets_the_videos_of_the_run_before(tmp_path: Path) -> None:
    make_run(tmp_path, 60)
    make_run(tmp_path, 40)
    record = read_run(tmp_path)
    assert record.starts == 1
    assert [clip.step for clip in record.sights[0].history] == [20, 40]


def test_little_is_enough(tmp_path: Path) -> None:
    with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        run.emit(RunStarted("demo", str(tmp_path)))
        run.emit(RunFinished(0, "failed", "the data folder is empty"))
    (tmp_path / "versions.json").write_text("{broken")
    text = Page(write_report(tmp_path, title="Demo").read_text(encoding="utf-8")).text
    assert "No step was finished" in text
    assert "the data folder is empty" in text


def test_losses_that_are_not_numbers_do_no_harm(tmp_path: Path) -> None:
    with open_run(tmp_path, {}, "demo", sinks=QUIET) as run:
        run.emit(RunStarted("demo", str(tmp_path)))
        for step in range(1, 4):
            run.emit(StepFinished(step, 1, math.nan if step == 2 else 0.5, 1e-4, 0.5, 2, 336, 0.25))
        run.emit(RunFinished(3, "finished"))
    assert "0.5000" in write_report(tmp_path, title="Demo").read_text(encoding="utf-8")


def test_a_removed_video_is_left_out(folder: Path) -> None:
    for path in (folder / "validation_videos").glob("step_40*"):
        path.unlink()
    page = Page(write_report(folder, title="Demo").read_text(encoding="utf-8"))
    assert "After: step 20" in page.text


def test_a_damaged_video_costs_only_its_strip(folder: Path) -> None:
    (folder / "validation_videos" / "base_cat#1_64x64.mp4").write_bytes(b"damaged")
    page = Page(write_report(folder, title="Demo").read_text(encoding="utf-8"))
    assert "Frame by frame" not in page.text


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path, title="Demo")


def test_smoothing_follows_a_constant_at_once() -> None:
    assert smooth([2.0] * 5, 5) == pytest.approx([2.0] * 5)
    assert smooth([math.nan, 1.0, math.nan, 1.0], 5)[1:] == pytest.approx([1.0] * 3)
    assert smooth([0.0] * 50 + [1.0] * 200, 20)[-1] == pytest.approx(1.0, abs=1e-3)
