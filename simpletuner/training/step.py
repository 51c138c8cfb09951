"""One optimizer step: micro-batches -> loss terms -> gradients -> update.

Nothing here waits for an accelerator; the numbers of the step are read later (`training/readout.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from simpletuner.core.errors import UserError
from simpletuner.data.batch import Batch
from simpletuner.maths.clipping import clip_gradients
from simpletuner.objectives.terms import LossTerm
from simpletuner.runtime.seeds import stream_seed
from simpletuner.training.readout import PendingStep, StepNumbers
from simpletuner.training.state import TrainState

# Transformer, batch on its device, number of the optimizer step (from 1).
Objective = Callable[[nn.Module, Batch, int], Sequence[LossTerm]]

DROPOUT_STREAM: Final = "dropout"


def take_step(state: TrainState, objective: Objective) -> PendingStep:
    """Advance `state` by one optimizer step and return its numbers, which may still be on their way.

    Each micro-batch counts by its share of the step's samples, so that 2 batches of 2 train like 4
    of 1. On the CPU the numbers are checked before the update; on an accelerator they are checked
    when they are read, and a state that was updated from broken numbers is marked so.

    Raises:
        UserError: On the CPU, if the loss or a gradient is not a finite number (exit code 5).
    """
    numbers = StepNumbers(state.step + 1, state.learning_rate(state.step))
    ends_step = False
    while not ends_step:
        batch = next(state.batches).to(state.trainable.device, state.trainable.dtype)
        run_micro_step(state, objective, batch, numbers)
        ends_step = batch.ends_step
    settings = state.settings
    norm = clip_gradients(_gradients(state), settings.max_grad_norm, settings.grad_clip_method)
    pending = numbers.send(norm)
    if not pending.waits:
        refuse_broken_step(state, pending)
    for group in state.optimizer.param_groups:
        group["lr"] = numbers.learning_rate
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if state.average is not None:
        state.average.update(state.step)
    return pending


def run_micro_step(state: TrainState, objective: Objective, batch: Batch, numbers: StepNumbers) -> None:
    """Forward and backward of one micro-batch; gradients add up in the trained parameters."""
    if state.trainable.draws_dropout:
        torch.manual_seed(stream_seed(state.seed, DROPOUT_STREAM, batch.sample_numbers[0]))
    terms = objective(state.trainable.transformer, batch, numbers.step)
    numbers.add(batch, terms)
    torch.autograd.backward([term.value * (term.weight * batch.share) for term in terms])


def refuse_broken_step(state: TrainState, pending: PendingStep) -> None:
    """Read the step's numbers; if they are broken, mark the state, drop its gradients and raise.

    Raises:
        UserError: Naming step and samples (exit code 5).
    """
    try:
        pending.refuse_broken_numbers()
    except UserError:
        state.broken = True
        state.optimizer.zero_grad(set_to_none=True)
        raise


def _gradients(state: TrainState) -> list[Tensor]:
    gradients = []
    for name, parameter in state.trainable.parameters.items():
        if parameter.grad is None and state.trainable.skips_layers:
            # Left out of every micro-batch of the step. Zero, not nothing: the optimizer's state stays complete.
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is None:
            raise RuntimeError(f"the trained parameter '{name}' got no gradient at step {state.step + 1}")
        gradients.append(parameter.grad)
    return gradients
