"""Measurements of the loss: one straight story in the file, one name per curve at the trackers."""

from __future__ import annotations

from pathlib import Path

import pytest

from simpletuner.config.webhook_file import Webhook
from simpletuner.events.records import Told
from simpletuner.events.sinks.evaluations import EVALUATIONS, EvaluationsSink, read_evaluations
from simpletuner.events.sinks.scalars import evaluation_scalars
from simpletuner.events.sinks.webhook_messages import Composer, concerns
from simpletuner.events.types import LossEvaluated, RunStarted


def measured(step: int, loss: float = 0.5, weights: str = "adapter") -> LossEvaluated:
    return LossEvaluated(
        step, "ema" if weights == "ema" else "adapter", loss, {"held": loss}, (0.1, 0.6, 0.9),
        {"held": (loss + 0.1, loss, loss - 0.1)}, clips=2, seconds=1.0, yardstick="y", best_step=step, best_loss=loss,
    )  # fmt: skip


def steps(folder: Path) -> list[tuple[int, str, float]]:
    return [(line["step"], line["weights"], line["loss"]) for line in read_evaluations(folder)]


def play(folder: Path, *events: LossEvaluated, resumed_from: str = "") -> None:
    sink = EvaluationsSink(folder)
    sink.receive(RunStarted("night", str(folder), resumed_from), 1)
    for event in events:
        sink.receive(event, 2)
    sink.close()


def test_a_run_that_measures_nothing_has_no_file(tmp_path: Path) -> None:
    play(tmp_path)
    assert not (tmp_path / EVALUATIONS).exists()
    assert steps(tmp_path) == []


def test_what_is_repeated_is_taken_out(tmp_path: Path) -> None:
    play(tmp_path, measured(0), measured(10), measured(10, 0.6, "ema"), measured(20))
    assert steps(tmp_path) == [(0, "adapter", 0.5), (10, "adapter", 0.5), (10, "ema", 0.6), (20, "adapter", 0.5)]
    play(tmp_path, measured(20, 0.3), resumed_from=str(tmp_path / "checkpoint-10"))
    assert steps(tmp_path) == [(0, "adapter", 0.5), (10, "adapter", 0.5), (10, "ema", 0.6), (20, "adapter", 0.3)]
    play(tmp_path, measured(0, 0.9))
    assert steps(tmp_path) == [(0, "adapter", 0.9)]


def test_a_run_that_goes_back_by_itself_repeats_too(tmp_path: Path) -> None:
    play(tmp_path, measured(10), measured(20), measured(15, 0.4))
    assert steps(tmp_path) == [(10, "adapter", 0.5), (15, "adapter", 0.4)]


def test_names_of_the_curves() -> None:
    scalars = evaluation_scalars(measured(3))
    assert scalars == pytest.approx({
        "loss/val": 0.5, "loss/val/held": 0.5, "loss/val_sigma_0.00-0.25": 0.6, "loss/val_sigma_0.50-0.75": 0.5,
        "loss/val_sigma_0.75-1.00": 0.4,
    })  # fmt: skip
    assert "loss/val_ema/held" in evaluation_scalars(measured(3, weights="ema"))


def test_a_receiver_hears_of_it() -> None:
    receiver = Webhook(webhook_type="raw", callback_url="http://localhost", events=("training.evaluation",))
    assert concerns(measured(3), receiver)
    (message,) = Composer().compose(Told(1, measured(3)))
    assert message.body["type"] == "training.evaluation"
    assert message.body["data"]["metrics"]["loss/val/held"] == 0.5
    assert "after step 3" in message.text
