"""The pinned run, and settings that must give one and the same trajectory with the real family."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from simpletuner.training.checkpoint import restore, save_checkpoint
from simpletuner.training.fit import fit

# One step may differ by rounding that another processor or release of torch does in another order...
STEP_TOLERANCE = 1e-3
# ...but not always to the same side: a small mistake shows in the mean over all steps.
MEAN_TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def golden() -> Any:
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("record.py"))))


def train(state: Any, objective: Any, until: int = 10**9) -> list[tuple[Any, ...]]:
    """(step, loss, gradient norm, rate) of each step."""
    events = fit(state, objective, stop=lambda: state.step >= until)
    return [(event.step, event.loss, event.gradient_norm, event.learning_rate) for event in events]


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].float() - other[name].float()).abs().max().item() for name in one)


def test_twenty_steps_are_as_pinned(golden: Any, miniature: Path) -> None:
    if os.environ.get("RECORD_GOLDEN"):  # set by `make golden-record`
        golden.record()
    pinned = json.loads(golden.PINNED.read_text())
    steps = golden.run_golden(miniature)
    assert len(steps) == len(pinned["steps"]) == golden.STEPS
    for key in ("loss", "gradient_norm"):
        ratios = [now[key] / then[key] - 1 for now, then in zip(steps, pinned["steps"], strict=True)]
        about = f"{key}, recorded with {pinned['environment']}, now {golden.describe_environment()}"
        assert max(abs(ratio) for ratio in ratios) < STEP_TOLERANCE, about
        assert abs(sum(ratios) / len(ratios)) < MEAN_TOLERANCE, about


@pytest.mark.parametrize(("optimizer", "precision"), [("torch-adamw", "no"), ("adamw_bf16", "bf16")])
def test_resuming_at_step_10_of_20_is_bit_equal(
    golden: Any, miniature: Path, tmp_path: Path, optimizer: str, precision: str
) -> None:
    (straight, one), (first, two), (second, three) = (
        golden.begin_run(miniature, optimizer=optimizer, precision=precision, checkpointing=True) for _ in range(3)
    )
    expected = train(straight, one)
    rows = train(first, two, until=10)
    saved = save_checkpoint(first, tmp_path, facts={})
    restore(second, saved, {})
    assert rows + train(second, three) == expected
    assert largest_difference(straight.trainable.tensors(), second.trainable.tensors()) == 0.0
    for parameters in zip(straight.trainable.parameters.values(), second.trainable.parameters.values(), strict=True):
        parts = [run.optimizer.state[p] for run, p in zip((straight, second), parameters, strict=True)]
        assert parts[0].keys() == parts[1].keys()
        assert all(torch.equal(torch.as_tensor(parts[0][key]), torch.as_tensor(parts[1][key])) for key in parts[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"batch_size": 4, "one_bucket": True}, {"batch_size": 2, "accumulation": 2, "one_bucket": True}),
        ({"checkpointing": False}, {"checkpointing": True}),
    ],
    ids=["accumulation", "gradient checkpointing"],
)
def test_settings_that_must_not_matter(
    golden: Any, miniature: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    runs = [golden.begin_run(miniature, **settings) for settings in (one, other)]
    rows = [train(*run, until=8) for run in runs]
    assert [row[1] for row in rows[0]] == pytest.approx([row[1] for row in rows[1]], abs=1e-6)
    assert largest_difference(runs[0][0].trainable.tensors(), runs[1][0].trainable.tensors()) < 1e-5


def test_two_runs_of_one_seed_are_bit_equal(golden: Any, miniature: Path) -> None:
    runs = [golden.begin_run(miniature, optimizer="adamw_bf16", precision="bf16", seed=seed) for seed in (1, 1, 2)]
    rows = [train(*run, until=6) for run in runs]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]
    adapters = [state.trainable.tensors() for state, _ in runs]
    assert largest_difference(adapters[0], adapters[1]) == 0.0
