"""What a person sees, on a terminal and in a log file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from simpletuner.events.sinks import bars
from simpletuner.events.sinks import console as module
from simpletuner.events.sinks.bars import Bars
from simpletuner.events.sinks.console import ConsoleSink
from simpletuner.events.types import (
    CheckpointSaved,
    Event,
    LossEvaluated,
    Noticed,
    PaceMeasured,
    RunFinished,
    RunStarted,
    StageAdvanced,
    StageFinished,
    StageStarted,
    StepFinished,
    StoryTold,
    VideoGenerated,
)
from simpletuner.events.wording import told_duration, told_pace, told_rate, told_size


def step(number: int) -> StepFinished:
    return StepFinished(number, 1, 1.0 / number, 1e-4, 0.7, 2, 336, 0.01, 3_200_000_000)


PACE = PaceMeasured(
    5, 0.83, 1.66, 558.0, 7200.0, {"training": 5990.0, "validation": 1200.0, "checkpoint": 10.0}, ("validation",)
)


def tell(events: list[Event], *, terminal: bool) -> str:
    out = io.StringIO()
    sink = ConsoleSink(Path(), Console(file=out, force_terminal=terminal, width=120, highlight=False))
    for sequence, event in enumerate(events, 1):
        sink.receive(event, sequence)
    sink.close()
    return out.getvalue()


STORY: list[Event] = [
    RunStarted("demo", "output/demo", "output/demo/checkpoint-10"),
    StoryTold("Clips", (("found", "6 in [red]datasets[/red]/clips"), ("used", "5"), ("\u753b\u9762", "1 bucket"))),
    StageStarted("latents", "Encoding clips", 5, "clips", 2),
    StageAdvanced("latents", 5, "deep/clip.mp4"),
    StageFinished("latents", 5, 1.5, "3 encoded, 2 reused"),
    Noticed("warning", "clip [x].mp4 is left out: it is empty"),
    StageStarted("train", "Training", 4, "steps"),
    *[step(number) for number in range(1, 5)],
    CheckpointSaved(4, "output/demo/checkpoint-4", 0.2, 1_500_000),
    VideoGenerated(4, "adapter", "cat", "a cat", 64, 64, 9, 25.0, 1, "v/step_4_cat_64x64.mp4", 2.0),
    StageFinished("train", 4, 130.0),
    RunFinished(4, "finished", "report: output/demo/report.html"),
]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_whole_story_is_told(terminal: bool) -> None:
    text = tell(STORY, terminal=terminal)
    for part in (
        "Run 'demo' in output/demo",
        "Going on from output/demo/checkpoint-10",
        "6 in [red]datasets[/red]/clips",  # taken literally, not as markup
        "Encoding clips: 5 clips in 1.5 s (3 encoded, 2 reused)",
        "warning: clip [x].mp4 is left out",
        "Checkpoint of step 4: output/demo/checkpoint-4 (1.5 MB)",
        "Video (step 4): v/step_4_cat_64x64.mp4 (2.0 s)",
        "Training: 4 steps in 2 min 10 s",
        "Finished after step 4",
        "0.7500 -> 0.2917 (means of the first and last 2 steps)",
        "last checkpoint",
        "report: output/demo/report.html",
    ):
        assert part in text, part
    assert ("\x1b[" in text) == terminal


def test_bars_show_progress_loss_and_rate_on_a_terminal() -> None:
    out = io.StringIO()
    sink = ConsoleSink(Path(), Console(file=out, force_terminal=True, width=200, highlight=False))
    sink.receive(StageStarted("train", "Training", 10, "steps"), 1)
    for number in range(1, 6):
        sink.receive(step(number), number + 1)
    assert isinstance(sink._display, Bars)
    sink._display._progress.refresh()
    sink.receive(PACE, 6)
    sink._display._progress.refresh()
    sink.receive(StageStarted("validation", "Generating videos", 50, "steps"), 7)
    sink.receive(StageAdvanced("validation", 25, "cat"), 8)
    sink._display._progress.refresh()
    text = out.getvalue()
    sink.close()
    assert "5/10 steps" in text
    assert "0.83 it/s, 1.66 clips/s, 558 tokens/s" in text
    assert "2 h 00 min left (validation about 20 min 00 s)" in text
    assert "loss 0.2000, lr 1.0e-04, 3.2 GB" in text
    assert "25/50 steps" in text


def test_progress_takes_one_line_however_narrow_the_terminal_is() -> None:
    lines = {}
    for width in (30, 40, 60, 80, 100, 140):
        out = io.StringIO()
        sink = ConsoleSink(Path(), Console(file=out, force_terminal=True, width=width, highlight=False))
        sink.receive(StageStarted("train", "Training", 10, "steps"), 1)
        sink.receive(step(5), 2)
        sink.receive(PACE, 3)
        assert isinstance(sink._display, Bars)
        shown = Console(width=width).render_lines(sink._display._progress.get_renderable())
        assert len(shown) == 1, width
        lines[width] = "".join(segment.text for segment in shown[0]).rstrip()
        sink.close()
    assert lines[30] == "Training 5/10 steps"
    assert all("2 h 00 min left" in line for width, line in lines.items() if width >= 40)
    assert all("loss 0.2000" in line for width, line in lines.items() if width >= 60)
    assert "lr 1.0e-04" in lines[140]


def test_no_part_of_what_is_left_is_longer_than_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    pace = bars.Pace(PaceMeasured(5, 1.0, 1.0, 9.0, 20.0, {"training": 8.0, "validation": 12.0}), 100.0)
    assert pace.left == "20.0 s left (validation 12.0 s)"
    now[0] += 10
    assert pace.left == "10.0 s left (validation 6.0 s)"
    now[0] += 20
    assert pace.left == "0.0 s left"


def test_a_log_file_gets_a_line_per_tenth_at_most_one_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    sink = ConsoleSink(Path(), Console(file=out, width=120, highlight=False))
    sink.receive(StageStarted("train", "Training", 1000, "steps"), 1)
    for number in range(1, 1001):
        now[0] += 0.02  # 20 seconds in all: 2 seconds per tenth
        sink.receive(step(number), number)
    sink.receive(PACE, 1001)
    slow = out.getvalue().splitlines()
    assert len(slow) == 10
    assert slow[0].startswith("Training: 100/1000 steps, 50.0 steps/s, 18.0 s left, loss 0.0100, lr 1.0e-04")
    now[0] += 2
    sink.receive(step(100), 1002)
    told = out.getvalue().splitlines()[10]  # from when the pace of the run is told, it is the pace of the lines
    assert told.startswith(
        "Training: 100/1000 steps, 0.83 it/s, 1.66 clips/s, 558 tokens/s, 1 h 59 min left (validation"
    )
    for number in range(1, 1001):
        now[0] += 0.001  # one second in all
        sink.receive(step(number), number)
    assert len(out.getvalue().splitlines()) <= 13


def test_a_slow_stage_says_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    sink = ConsoleSink(Path(), Console(file=out, width=120, highlight=False))
    sink.receive(StageStarted("train", "Training", 100_000, "steps"), 1)
    for number in range(1, 31):
        now[0] += 10
        sink.receive(step(number), number)
    assert len(out.getvalue().splitlines()) == 5


def test_a_measurement_is_one_line() -> None:
    measured = LossEvaluated(5, "adapter", 0.5, {"a": 0.5}, (0.5,), {"a": (0.5,)}, 4, 0.2, "x", decides=False)
    events = [StageStarted("evaluation", "Measuring", 4, "passes"), StageFinished("evaluation", 4, 0.2), measured]
    assert tell(events, terminal=False) == "Loss on clips set apart (step 5): 0.5000 (0.2 s)\n"


def test_stages_without_work_and_unknown_stages_do_no_harm() -> None:
    text = tell([StageStarted("prompts", "Encoding prompts", 0), StageFinished("prompts", 0, 0.0), step(1),
                 StageAdvanced("unknown", 3)], terminal=False)  # fmt: skip
    assert "Encoding prompts: 0 items in 0.0 s" in text


def test_numbers_read_well() -> None:
    assert [told_duration(s) for s in (0.04, 59.94, 59.96, 133, 3600, 3 * 86400 + 7200)] == [
        "0.0 s", "59.9 s", "1 min 00 s", "2 min 13 s", "1 h 00 min", "3 d 02 h",
    ]  # fmt: skip
    assert [told_size(b) for b in (512, 1500, 3_100_000, 12.4e9)] == ["512 B", "1.5 kB", "3.1 MB", "12.4 GB"]
    assert [told_pace(r, 2 * r, 9.0) for r in (0.83, 0.0625)] == [
        "0.83 it/s, 1.66 clips/s, 9 tokens/s", "16.0 s/it, 0.12 clips/s, 9 tokens/s",
    ]  # fmt: skip
    assert [told_rate(r, "steps") for r in (0, 4.2, 0.25)] == ["", "4.2 steps/s", "4.0 s/step"]
