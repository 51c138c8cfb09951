"""One optimizer step: micro-batches -> loss terms -> gradients -> update.

Nothing here waits for an accelerator; the numbers of the step are read later (`training/readout.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from simpletuner.core.errors import ExitCode, UserError
from simpletuner.data.batch import Batch
from simpletuner.maths.clipping import clip_gradients
from simpletuner.objectives.terms import LossTerm
from simpletuner.runtime.regions import AVERAGE, BACKWARD, BESIDE, DATA, FORWARD, LIMIT, MOVE, UPDATE, region
from simpletuner.runtime.seeds import stream_seed
from simpletuner.training.movement import LOOK_EVERY
from simpletuner.training.optim.released import ReleasedOptimizer
from simpletuner.training.out_of_memory import is_out_of_memory, make_room
from simpletuner.training.readout import PendingStep, StepNumbers
from simpletuner.training.state import TrainState

# Transformer, batch on its device, number of the optimizer step (from 1).
Objective = Callable[[nn.Module, Batch, int], Sequence[LossTerm]]

DROPOUT_STREAM: Final = "dropout"
# How torch's optimizers say that they leave everything as it is where `found_inf` is 1 (see torch.amp.GradScaler).
_SKIPS_BY_ITSELF: Final = "_step_supports_amp_scaling"


def never() -> bool:
    """Nobody asks to stop."""
    return False


def tell_nobody(text: str) -> None:
    """Nobody listens."""


def take_step(
    state: TrainState,
    objective: Objective,
    stop: Callable[[], bool] = never,
    *,
    skips: bool = False,
    tell: Callable[[str], None] = tell_nobody,
) -> PendingStep | None:
    """Advance `state` by one optimizer step and return its numbers, which may still be on their way.

    Each micro-batch counts by its share of the step's samples, so that 2 batches of 2 train like 4 of 1.

    A step whose loss or gradients are no finite numbers changes neither weights nor optimizer. On the CPU that is
    decided here. On an accelerator the device decides for itself: optimizers that can leave everything as it is do;
    the others are given gradients of zero, with which only their memory of earlier ones fades by a step. Where
    gradients are released, that is so for each parameter by itself.

    Args:
        state: A state between two steps.
        objective: Batch -> loss terms.
        stop: Asked between two micro-batches. A step that is stopped is given up, and the position in the data
            is the one before it, so that a run which goes on from there is the undisturbed one.
        skips: Whether a broken step is passed over and counted; else it raises, on the CPU before the state changes.
        tell: Told when a step did not fit into memory and is repeated with less of it.

    Returns:
        None if the step was given up.

    Raises:
        UserError: On the CPU, if the step is broken and is not to be passed over; if memory ran out while the weights
            were updated (exit code 5 both). If the step does not fit (`DoesNotFitError`); the state is whole then.
    """
    # Once, and not for a repeated attempt: a second look at the same step would see weights that stand still.
    still = _look_at_weights(state)
    begun_at = state.batches.state_dict()
    while True:
        try:
            pending, gradients = _gather(state, objective, stop, still)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if isinstance(state.optimizer, ReleasedOptimizer):
                raise _half_updated(state) from error  # parameters move in the backward pass
        # Not in the handler: the error keeps what has to be freed.
        _give_up_step(state, begun_at)
        make_room(state, state.step + 1, tell)
    if pending is None:
        _give_up_step(state, begun_at)
        return None
    if not (pending.waits or skips):
        refuse_broken_step(state, pending)
    try:
        if pending.waits:
            _update_unless_broken(state, pending, gradients)
        elif pending.fault is None:
            _update(state)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _half_updated(state) from error
    _drop_gradients(state)
    state.step += 1
    if state.average is not None:
        with region(AVERAGE):
            state.average.update(state.step)
    return pending


def _gather(
    state: TrainState, objective: Objective, stop: Callable[[], bool], still: Tensor | None
) -> tuple[PendingStep | None, list[Tensor]]:
    """All micro-batches of a step: its numbers on their way, and its clipped gradients; None if it was stopped."""
    numbers = StepNumbers(state.step + 1, state.learning_rate(state.step), still=still)
    # Before the gradients: where they are released, parameters move in the backward pass.
    for group in state.optimizer.param_groups:
        group["lr"] = numbers.learning_rate
    ends_step = False
    while not ends_step:
        if numbers.parts and stop():
            return None, []
        with region(DATA):
            batch = next(state.batches)
        with region(MOVE):
            batch = batch.to(state.trainable.device, state.trainable.dtype)
        for part in state.trainable.passes.parts(batch):
            run_micro_step(state, objective, part, numbers)
        ends_step = batch.ends_step
    gradients = [] if isinstance(state.optimizer, ReleasedOptimizer) else _gradients(state)
    with region(LIMIT):
        return numbers.send(_limited_norm(state, gradients)), gradients


def _look_at_weights(state: TrainState) -> Tensor | None:
    if state.movement is None or state.step % LOOK_EVERY:
        return None
    return state.movement.look(state.step)


def _give_up_step(state: TrainState, begun_at: dict[str, int]) -> None:
    """Put everything back to where it was before the step."""
    _drop_gradients(state)
    state.batches.load_state_dict(begun_at)


def _half_updated(state: TrainState) -> UserError:
    """Some weights may have moved and others not; only a checkpoint leads on."""
    state.broken = True
    _drop_gradients(state)
    return UserError(
        f"step {state.step + 1}: memory ran out while the weights were updated",
        "Some of them may have moved and others not, so this state is not saved",
        "Choose an optimizer with smaller states, such as optimi-lion or bnb-adamw8bit, or lower lora_rank",
        exit_code=ExitCode.NUMERICS,
    )


def run_micro_step(state: TrainState, objective: Objective, batch: Batch, numbers: StepNumbers) -> None:
    """Forward and backward of a micro-batch or a part of it; gradients add up in the parameters, or beside them."""
    if state.trainable.draws_dropout:
        torch.manual_seed(stream_seed(state.seed, DROPOUT_STREAM, batch.sample_numbers[0]))
    with region(FORWARD):
        terms = objective(state.trainable.transformer, batch, numbers.step)
        numbers.add(batch, terms)
        losses = [term.value * (term.weight * batch.share) for term in terms if not term.is_reported_only]
    with region(BACKWARD):
        torch.autograd.backward(losses)


def refuse_broken_step(state: TrainState, pending: PendingStep) -> None:
    """Read the step's numbers; if they are broken, mark the state, drop its gradients and raise.

    Raises:
        UserError: Naming step and samples (exit code 5).
    """
    if pending.fault is not None:
        state.broken = True
        _drop_gradients(state)
        raise pending.fault.as_error()


def _limited_norm(state: TrainState, gradients: Sequence[Tensor]) -> Tensor:
    """Limit the gradients; their global L2 norm from before, on their device."""
    settings = state.settings
    if isinstance(state.optimizer, ReleasedOptimizer):
        return state.optimizer.gradient_norm()
    return clip_gradients(gradients, settings.clip_limit, settings.grad_clip_method)


def _update(state: TrainState) -> None:
    with region(UPDATE):
        if state.sums is not None:
            state.sums.hand_over(state.optimizer)
        state.optimizer.step()
    if state.companions is not None:
        with region(BESIDE):
            state.companions.step()


def _update_unless_broken(state: TrainState, pending: PendingStep, gradients: Sequence[Tensor]) -> None:
    """Update if the numbers are finite; the device knows, the host does not wait for it."""
    assert pending.at_source is not None
    broken = ~torch.isfinite(pending.at_source).all()
    if state.companions is not None:
        state.companions.mask_gradients(broken)
    facts = vars(state.optimizer)
    if facts.get(_SKIPS_BY_ITSELF, False):
        facts["found_inf"] = broken.float()
        _update(state)
        facts["found_inf"] = None
        return
    for gradient in gradients:
        gradient.masked_fill_(broken, 0.0)
    _update(state)


def _drop_gradients(state: TrainState) -> None:
    state.optimizer.zero_grad(set_to_none=not state.keeps_gradients)
    if state.sums is not None:
        state.sums.clear()
    if state.companions is not None:
        state.companions.drop_gradients()


def _gradients(state: TrainState) -> list[Tensor]:
    """The gradient of each trained parameter, in their order; those of narrow ones in float32 if they were summed."""
    gradients = []
    for name, parameter in state.trainable.parameters.items():
        gradient = parameter.grad if state.sums is None else state.sums.of(parameter)
        if gradient is None and state.trainable.skips_layers:
            # Left out of every micro-batch of the step. Zero, not nothing: the optimizer's state stays complete.
            gradient = _give_zero(state, parameter)
        if gradient is None:
            raise RuntimeError(f"the trained parameter '{name}' got no gradient at step {state.step + 1}")
        gradients.append(gradient)
    return gradients


def _give_zero(state: TrainState, parameter: nn.Parameter) -> Tensor:
    if state.sums is not None and state.sums.keeps(parameter):
        return state.sums.add_zero(parameter)
    parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
