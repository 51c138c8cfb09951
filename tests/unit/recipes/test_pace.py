"""Rates of a run: only whole counts divided by seconds, and a share of a rate that is measured once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simpletuner.config.run_config import RunConfig
from simpletuner.config.sections.model import ModelSection
from simpletuner.events.types import StepFinished
from simpletuner.models.cost import cost_source
from simpletuner.recipes import time_left
from simpletuner.recipes.forecast import find_trained_part
from simpletuner.recipes.pace import RATES_FILE, WARM_UP_STEPS, Pace
from simpletuner.recipes.run_length import Rhythms
from simpletuner.recipes.time_left import TimeLeft
from simpletuner.runtime.matrix_rate import matrix_rate
from simpletuner.training.due import Rhythm


def step(number: int, seconds: float) -> StepFinished:
    return StepFinished(number, 1, 0.5, 1e-4, 1.0, samples=2, tokens=2 * 2688, seconds=seconds)


def test_rates(tmp_path: Path) -> None:
    model = ModelSection(model_family="ltxvideo", model_type="lora", model_flavour="0.9.5")
    config: Any = RunConfig(datasets=(), text_embeds=None, model=model)  # type: ignore[arg-type]
    cpu = torch.device("cpu")
    key = f"a card, {torch.get_num_threads()} threads, bfloat16, {torch.__version__}"
    (tmp_path / RATES_FILE).write_text(f'{{"{key}": 1e13}}')
    session: Any = SimpleNamespace(
        state=SimpleNamespace(total_steps=10), batches=SimpleNamespace(steps_per_epoch=5), config=config,
         host=SimpleNamespace(device=cpu, device_name="a card"), folder=tmp_path,
        trainable=SimpleNamespace(dtype=torch.bfloat16),
    )  # fmt: skip
    pace = Pace(session)
    for number in range(WARM_UP_STEPS):
        pace.note(step(number + 1, 1000.0))
    assert pace.summary() == ""
    pace.note(step(8, 20.0))
    assert pace.summary() == "20.0 s/it, 0.10 clips/s, 269 tokens/s"  # too short to speak of the device
    for number in range(9):
        pace.note(step(number + 9, 20.0))
    told = pace.summary()
    assert told.startswith("20.0 s/it, 0.10 clips/s, 269 tokens/s, ")
    cost = cost_source("ltxvideo").find(model)
    trained = find_trained_part(config, cost)
    recomputing = cost.train_clip(2688, 128, trained).total_flops
    useful = float(told.split("tokens/s, ")[1].split()[0]) * 1e12 * 200 / 20
    assert 0.9 * 24e12 < useful < 1.1 * 24e12 < recomputing  # 24.0 TFLOP: performance.md's own table for this clip


def test_what_is_left_counts_what_recurs_by_its_length_or_its_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time_left.time, "monotonic", lambda: now[0])
    asked = []

    def forecast(step_seconds: float) -> dict[str, float]:
        asked.append(step_seconds)
        return {"validation": 30.0, "checkpoint": 0.5}

    # Checkpoints after 25, 50, 75 and 100, safety ones after every tenth between them; videos after 50 and 100.
    rhythms = Rhythms(Rhythm(25), Rhythm(10, at_end=False), Rhythm(at_end=False), Rhythm(50))
    left = TimeLeft(rhythms, 100, 40, forecast)
    assert left.after(4, 2.0) == (
        {"training": 192.0, "checkpoint": 0.5 * 12, "validation": 60.0}, ("checkpoint", "validation")
    )  # fmt: skip
    for work, seconds in (("rolling", 1.0), ("checkpoint", 2.0), ("validation", 40.0)):
        with left.measuring(work):  # type: ignore[arg-type]
            now[0] += seconds
    assert left.after(50, 2.0) == ({"training": 100.0, "checkpoint": 1.5 * 6, "validation": 40.0}, ())
    assert left.after(100, 2.0) == ({"training": 0.0}, ())
    assert left.seconds_of("checkpoint") == left.seconds_of("rolling") == 3.0
    assert left.seconds_of("evaluation") == 0.0
    assert asked == [2.0]


def test_a_rate_is_measured_once_and_kept(tmp_path: Path) -> None:
    kept = tmp_path / "deep" / RATES_FILE
    first = matrix_rate(torch.device("cpu"), "here", torch.float32, kept)
    assert first > 1e8
    assert matrix_rate(torch.device("cpu"), "here", torch.float32, kept) == first
    kept.write_text("{broken")
    assert matrix_rate(torch.device("cpu"), "here", torch.float32, kept) > 1e8
