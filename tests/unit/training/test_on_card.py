"""On a card: the numbers of the CPU, no waiting, copies of their moment, every optimizer, full memory recognised."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.sections.model import ModelSection
from simpletuner.runtime.absence import Absence
from simpletuner.runtime.host import find_host
from simpletuner.runtime.matrix_rate import measure_matrix_rate
from simpletuner.runtime.meter import MemoryMeter
from simpletuner.training.checkpoint import restore, save_checkpoint
from simpletuner.training.compilation import Compilation
from simpletuner.training.fit import fit
from simpletuner.training.host_copies import HostCopies
from simpletuner.training.out_of_memory import is_out_of_memory
from simpletuner.training.step import take_step

pytestmark = pytest.mark.gpu

MIB = 1 << 20


def losses(run: Any) -> list[float]:
    return [event.loss for event in fit(run.state, run.objective, stop=lambda: False, settles=lambda step: False)]


@contextlib.contextmanager
def no_waiting(card: torch.device) -> Iterator[None]:
    """Every wait of the host for the device is an error."""
    mode = "error" if card.type == "cuda" else "default"
    if card.type == "cuda":
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        if card.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", ["adamw_bf16", "torch-adamw", "optimi-lion"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loop_never_waits_for_the_device(
    small_run: Callable[..., Any], card: torch.device, optimizer: str, checkpointing: bool
) -> None:
    run = small_run(device=card.type, total_steps=8, optimizer=optimizer, batch_size=2, accumulation=2,
                    checkpointing=checkpointing, prefetch=2)  # fmt: skip
    events = fit(run.state, run.objective, stop=lambda: False, settles=lambda step: False)
    next(events)  # starts the device and fills its caches
    with no_waiting(card):
        assert take_step(run.state, run.objective) is not None
    run.stream.close()


def test_it_trains_what_the_cpu_trains(small_run: Callable[..., Any], card: torch.device) -> None:
    """In float32, so that what differs is the order of sums."""
    here, there = (small_run(device=kind, total_steps=6, batch_size=2, prefetch=2) for kind in ("cpu", card.type))
    assert losses(there) == pytest.approx(losses(here), rel=1e-3)
    theirs = there.adapter()
    for name, tensor in here.adapter().items():
        torch.testing.assert_close(theirs[name].cpu(), tensor, rtol=2e-2, atol=1e-3)
    there.stream.close()
    here.stream.close()


def test_recomputing_changes_nothing(small_run: Callable[..., Any], card: torch.device) -> None:
    plain, recomputed = (small_run(device=card.type, total_steps=4, checkpointing=on) for on in (False, True))
    assert losses(recomputed) == pytest.approx(losses(plain), rel=1e-5)


def test_a_resumed_run_is_the_straight_one(small_run: Callable[..., Any], card: torch.device, tmp_path: Path) -> None:
    straight = small_run(device=card.type, total_steps=8, average=None)
    expected = losses(straight)
    first, second = (small_run(device=card.type, total_steps=8) for _ in range(2))
    events = fit(first.state, first.objective, stop=lambda: first.state.step == 4)
    assert [event.loss for event in events] == pytest.approx(expected[:4], rel=1e-5)
    assert restore(second.state, save_checkpoint(first.state, tmp_path, facts=first.facts), second.facts) == ()
    assert losses(second) == pytest.approx(expected[4:], rel=1e-5)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer_steps(small_run: Callable[..., Any], card: torch.device, optimizer: str) -> None:
    run = small_run(device=card.type, total_steps=3, optimizer=optimizer, learning_rate=1e-3)
    before = run.adapter()
    assert all(math.isfinite(loss) for loss in losses(run))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in run.adapter().items())


def test_batches_wait_where_copies_do_not(small_run: Callable[..., Any], card: torch.device) -> None:
    batch = next(small_run(device=card.type, prefetch=0).stream)
    assert batch.latents.is_pinned() == batch.prompt_embeds.is_pinned() == (card.type == "cuda")


def test_copies_are_of_their_moment(card: torch.device) -> None:
    copies, tensor = HostCopies(), torch.ones(4 * MIB, device=card)
    for _ in range(20):
        tensor.mul_(1.0)  # work the device has not done yet
    taken = copies.take(tensor)
    tensor.zero_()
    copies.wait()
    assert taken.device.type == "cpu"
    assert float(taken.min()) == 1.0


def test_full_memory_is_recognised(card: torch.device) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device=card)
    assert is_out_of_memory(caught.value)


def test_the_meter_counts_what_is_held_at_once(card: torch.device) -> None:
    with MemoryMeter(card) as meter:
        first = torch.ones(8 * MIB, dtype=torch.uint8, device=card)
        before = meter.begin_anew()
        second = torch.ones(16 * MIB, dtype=torch.uint8, device=card)
        del second
    assert before >= first.nbytes
    assert meter.peak_bytes - before == pytest.approx(16 * MIB, abs=2 * MIB)


def test_what_is_away_leaves_its_room_and_comes_back(card: torch.device) -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4))).to(card).requires_grad_(False)
    model.append(nn.Linear(1024, 1024).to(card))  # trained: it stays
    given = torch.ones(2, 1024, device=card)
    expected, absence = model(given), Absence(model, card)
    held = torch.cuda.memory_allocated(card) if card.type == "cuda" else 0
    with absence.away():
        if card.type == "cuda":
            assert held - torch.cuda.memory_allocated(card) >= 4 * 4 * MIB
    assert torch.equal(model(given), expected)


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_compiled_blocks_have_the_gradients_of_plain_ones(card: torch.device, mode: Any) -> None:
    def gradients(compiled: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        blocks = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(3))).to(card)
        settings = ModelSection(dynamo_backend="inductor", dynamo_mode=mode)
        listening = Compilation(list(blocks), settings) if compiled else None
        found: list[torch.Tensor] = []
        for _ in range(4):  # the graph is recorded at the second and played from the third on
            blocks.zero_grad()
            blocks(torch.ones(8, 64, device=card)).square().mean().backward()
            found = [parameter.grad.clone() for parameter in blocks.parameters() if parameter.grad is not None]
        if listening is not None:
            listening.close()
        return found

    for ours, plain in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_the_matrix_rate_is_that_of_a_card(card: torch.device) -> None:
    host = SimpleNamespace(device=card) if card.type == "cpu" else find_host()
    assert host.device.type == card.type
    assert measure_matrix_rate(card, torch.bfloat16, 0.05) > (1e12 if card.type == "cuda" else 1e8)
