"""Memory that runs out at any place of a step: the step is repeated, and the run ends as without the fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from simpletuner.core.errors import ExitCode, UserError
from simpletuner.training.fit import fit_on
from simpletuner.training.out_of_memory import DoesNotFitError, is_out_of_memory


class Exhausted:
    """The objective on a device whose memory runs out at certain passes."""

    def __init__(self, objective: Any, fails_at: set[int], place: str) -> None:
        self._objective, self._fails_at, self._place = objective, fails_at, place
        self.passes = 0

    def __call__(self, transformer: Any, batch: Any, step: int) -> Any:
        self.passes += 1
        fails = self.passes in self._fails_at
        if fails and self._place == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory")
        terms = self._objective(transformer, batch, step)
        if fails and self._place == "backward":
            terms[0].value.register_hook(_run_out)
        return terms


def _run_out(gradient: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def train(run: Any, objective: Any) -> tuple[list[float], list[str]]:
    told: list[str] = []
    events = fit_on(run.state, objective, stop=lambda: False, tell=told.append)
    return [event.loss for event in events], told


@pytest.mark.parametrize("place", ["forward", "backward"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_run_ends_as_without_the_fault(small_run: Callable[..., Any], place: str, accumulation: int) -> None:
    settings = {"total_steps": 5, "accumulation": accumulation, "dropout": 0.2}
    plain, faulty = small_run(**settings), small_run(**settings)
    losses, _ = train(plain, plain.objective)
    # The model has one block; each fault needs one that is not recomputed yet.
    exhausted = Exhausted(faulty.objective, {2 * accumulation}, place)
    found, told = train(faulty, exhausted)
    assert found == losses
    assert len(told) == 1
    assert "from here on 1 of 1 blocks" in told[0]
    assert faulty.state.trainable.dial.recomputed == 1
    ours, theirs = faulty.adapter(), plain.adapter()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_step_that_cannot_fit_leaves_the_state_whole(small_run: Callable[..., Any]) -> None:
    run = small_run(total_steps=5, checkpointing=True)
    exhausted = Exhausted(run.objective, {3}, "forward")
    steps = fit_on(run.state, exhausted, stop=lambda: False)
    next(steps)
    next(steps)
    before, position = run.adapter(), run.state.batches.state_dict()
    with pytest.raises(DoesNotFitError, match="step 3 does not fit into memory"):
        next(steps)
    assert (run.state.step, run.state.broken, run.state.batches.state_dict()) == (2, False, position)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.adapter().items())
    assert all(parameter.grad is None for parameter in run.state.trainable.parameters.values())


def test_running_out_in_the_update_leads_back_to_a_checkpoint(small_run: Callable[..., Any]) -> None:
    run = small_run(total_steps=5)

    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    run.state.optimizer.register_step_pre_hook(run_out)
    with pytest.raises(UserError, match="while the weights were updated") as caught:
        list(fit_on(run.state, run.objective, stop=lambda: False))
    assert caught.value.exit_code == ExitCode.NUMERICS
    assert run.state.broken


def test_other_errors_pass(small_run: Callable[..., Any]) -> None:
    run = small_run(total_steps=2)

    def shapes(*_: Any) -> Any:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(fit_on(run.state, shapes, stop=lambda: False))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
