"""What the watch tells, and that it keeps quiet about what only chance and noise levels do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from simpletuner.events.types import StepFinished
from simpletuner.training import readout, step
from simpletuner.training.fit import fit
from simpletuner.training.movement import Movement
from simpletuner.training.watch import LossWatch

# What the loss is like in the four bands of noise levels: very different, and widely spread.
LEVELS = (8.0, 1.5, 0.4, 0.2)


def told(scales: list[float], *, seed: int = 0, spread: float = 0.3) -> list[tuple[int, str, str]]:
    """(step, severity, text) of what is told when the loss of step n is scales[n - 1] times that of its band."""
    draw, watch, found = random.Random(seed), LossWatch(), []
    for number, scale in enumerate(scales, 1):
        band = draw.randrange(4)
        loss = scale * LEVELS[band] * draw.lognormvariate(0.0, spread)
        terms = {f"loss/sigma_{band / 4:.2f}-{(band + 1) / 4:.2f}": loss}
        event = StepFinished(number, 1, loss, 1e-4, 1.0, 1, 10, 0.1, terms=terms)
        found += [(number, notice.severity, notice.text) for notice in watch.take(event)]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_falls_slowly_is_nothing_to_tell(seed: int) -> None:
    assert told([1.0 / (1 + step / 400) for step in range(1500)], seed=seed, spread=0.5) == []


@pytest.mark.parametrize("factor", [1000.0, 300.0])
def test_a_spike_is_told_once_per_hundred_steps(factor: float) -> None:
    scales = [1.0] * 300
    for spike in (120, 125, 260):
        scales[spike - 1] = factor
    spikes = [(step, severity) for step, severity, text in told(scales) if "times what it was" in text]
    assert spikes == [(120, "warning"), (260, "warning")]


def test_noise_levels_alone_are_no_spike() -> None:
    # From the lowest band to the highest the loss is 40 times as large, and that is as it should be.
    assert not [text for _, _, text in told([1.0] * 300, spread=0.8) if "times what" in text]


def test_divergence_is_told_once_and_again_after_a_recovery() -> None:
    course = [1.0] * 100 + [1.0 + step / 50 for step in range(150)] + [0.9] * 300 + [4.0] * 100
    steps = [step for step, severity, text in told(course) if "diverging" in text]
    assert len(steps) == 2
    assert 100 < steps[0] < 220
    assert 550 < steps[1] < 650


def test_a_plateau_is_a_note_and_only_told_where_a_fall_would_have_been_seen() -> None:
    course = [1.0 / (1 + step / 200) for step in range(600)] + [0.25] * 1000
    (note,) = [entry for entry in told(course, spread=0.1) if "not fallen" in entry[2]]
    assert note[1] == "note"
    assert 1000 <= note[0] <= 1300
    assert not [text for _, _, text in told(course, spread=2.0) if "not fallen" in text]


def test_losses_without_bands_are_watched_as_they_are() -> None:
    watch = LossWatch()
    for number in range(1, 40):
        assert list(watch.take(StepFinished(number, 1, 1.0, 1e-4, 1.0, 1, 10, 0.1))) == []
    (notice,) = watch.take(StepFinished(40, 1, 1000.0, 1e-4, 1.0, 1, 10, 0.1))
    assert notice.text.startswith("step 40: the loss is 1000, 1000 times")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_smallest_movement_is_seen(dtype: torch.dtype) -> None:
    weights = [torch.ones(7, 5, dtype=dtype).t(), torch.zeros(3, dtype=dtype)]
    movement = Movement(weights)
    assert movement.look(0) is None
    assert movement.look(100)
    weights[0][2, 3] = torch.nextafter(weights[0][2, 3], torch.tensor(2.0, dtype=dtype))
    assert not movement.look(200)
    assert movement.look(300)
    assert movement.look(300) is None  # the same step begun again
    assert movement.look(200) is None  # a run that went back
    assert movement.look(300)


@pytest.mark.parametrize(("rate", "still"), [(1e-12, [0] * 5 + [5]), (1e-3, [0] * 6)])
def test_weights_that_do_not_move_are_told(
    small_run: Callable[..., Any], rate: float, still: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for reader in (step, readout):
        monkeypatch.setattr(reader, "LOOK_EVERY", 5)
    # In float32 weights of about 0.1 cannot move by 1e-12; B of a fresh LoRA is 0 and would.
    run = small_run(learning_rate=rate, lr_scheduler="constant", lr_warmup_steps=0, total_steps=6)
    with torch.no_grad():
        for parameter in run.state.trainable.parameters.values():
            parameter.fill_(0.1)
    run.state.optimizer.param_groups[0]["weight_decay"] = 0.0
    events = list(fit(run.state, run.objective, stop=lambda: False))
    assert [event.still_steps for event in events] == still
    told_of = [notice.text for event in events for notice in LossWatch().take(event)]
    assert ["no trained weight has changed in the last 5 steps" in text for text in told_of] == [True] * any(still)
