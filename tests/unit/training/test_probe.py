"""The largest batch tried before step 1: the run is bit for bit the one without, whatever is trained and how."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simpletuner.config.sections.average import AverageSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.runtime.meter import LiveTensors, MemoryMeter
from simpletuner.training.fit import fit_on
from simpletuner.training.out_of_memory import DoesNotFitError
from simpletuner.training.probe import Probe, _dismiss, probe_step
from simpletuner.training.state import TrainState
from tests.unit.training.test_out_of_memory import Exhausted


def settings_of(
    optimizer: str = "torch-adamw", accumulation: int = 1, learning_rate: float = 1e-2, **updates: Any
) -> Any:
    return SimpleNamespace(
        optimizer=OptimizerSection(optimizer=optimizer, **{"grad_clip_method": "norm", **updates}),
        schedule=ScheduleSection(seed=7, gradient_accumulation_steps=accumulation, learning_rate=learning_rate),
        average=AverageSection(use_ema=True), precision=PrecisionSection(mixed_precision="no"), memory=MemorySection(),
    )  # fmt: skip


def probe(run: Any, config: Any, objective: Any = None, **more: Any) -> tuple[Probe, list[str]]:
    told: list[str] = []
    found = probe_step(
        run.state.trainable, objective or run.objective, None, run.stream.read_largest(), config, 5,
        tell=told.append, **more,
    )  # fmt: skip
    return found, told


def train(run: Any) -> list[float]:
    return [event.loss for event in fit_on(run.state, run.objective, stop=lambda: False)]


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({"optimizer": "adamw_bf16", "accumulation": 3, "dropout": 0.2}, {}),
        ({"optimizer": "torch-adamw", "keeps_gradients": True}, {}),
        ({"optimizer": "optimi-lion"}, {"optimizer_release_gradients": True, "grad_clip_method": "value"}),
        ({"optimizer": "prodigy"}, {}),
        ({"full": True}, {}),
    ],
)
def test_the_run_is_the_one_without(
    small_run: Callable[..., Any], settings: dict[str, Any], updates: dict[str, Any]
) -> None:
    rate = {"learning_rate": 1.0} if settings.get("optimizer") == "prodigy" else {}
    config = settings_of(settings.get("optimizer", "torch-adamw"), settings.get("accumulation", 1), **updates, **rate)
    plain, probed = (small_run(total_steps=4, updates=updates, **settings, **rate) for _ in range(2))
    for run in (plain, probed):  # the probe comes before there is a state
        _dismiss(run.state)
    draws = torch.get_rng_state()
    position = probed.state.batches.state_dict()
    found, told = probe(probed, config)
    for run in (plain, probed):
        run.state = TrainState.begin(run.state.trainable, run.stream, config, 4)
    assert torch.equal(torch.get_rng_state(), draws)
    assert probed.state.batches.state_dict() == position
    assert all(parameter.grad is None for parameter in probed.state.trainable.parameters.values())
    assert train(probed) == train(plain)
    theirs = plain.adapter()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in probed.adapter().items())
    weights = sum(p.nbytes for p in probed.state.trainable.transformer.parameters())
    assert (found.turned, told) == (False, [])
    assert weights < found.peak_bytes < 20 * weights


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_what_does_not_fit_turns_the_dial(small_run: Callable[..., Any], place: str) -> None:
    run, plain = small_run(total_steps=3), small_run(total_steps=3)
    found, told = probe(run, settings_of(), Exhausted(run.objective, {1}, place))
    assert (found.turned, found.recomputed, run.state.trainable.dial.recomputed) == (True, 1, 1)
    assert "1 of 1 blocks" in told[0]
    assert train(run) == train(plain)


def test_then_the_batch_is_halved(small_run: Callable[..., Any]) -> None:
    run = small_run(total_steps=3, batch_size=2, checkpointing=True)
    found, told = probe(run, settings_of(), Exhausted(run.objective, {1}, "forward"))
    assert (found.turned, found.tokens_per_pass, run.state.trainable.passes.tokens) == (True, 12, 12)
    assert "in parts of at most 12 latent cells" in told[0]


def test_what_cannot_fit_is_refused_before_step_1(small_run: Callable[..., Any]) -> None:
    run = small_run(total_steps=3)
    before = run.adapter()
    with pytest.raises(DoesNotFitError, match="does not fit into memory"):
        probe(run, settings_of(), Exhausted(run.objective, {1, 2}, "forward"))
    run = small_run(total_steps=3)
    with pytest.raises(DoesNotFitError, match=r"1 clip of 64x64@9, does not fit into memory: it takes .* of 0.00 GB"):
        probe(run, settings_of(), limit_bytes=1000.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.adapter().items())


def test_live_tensors() -> None:
    here = torch.zeros(1000)
    with LiveTensors([here, here[:10]]) as live:
        assert live.live_bytes == 4000
        a = torch.ones(250)
        b = a.view(50, 5)[3]
        assert live.live_bytes == 5000
        del a
        assert live.live_bytes == 5000  # a view holds it
        del b
        assert (live.live_bytes, live.peak_bytes) == (4000, 5000)
        (torch.ones(10, requires_grad=True) * 2).sum().backward()
    with MemoryMeter(torch.device("cpu"), [here]) as meter:
        _ = here + 1
    assert meter.peak_bytes == 8000
