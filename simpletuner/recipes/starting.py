"""Starting from an adapter file: the weights are there already; step count and averages may go on as well.

A file holds no optimizer state, so this is no resume: the trained weights begin where the file ends, the moments of
the optimizer begin anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.data.batches import BatchStream
from simpletuner.events.types import Event, Noticed
from simpletuner.models.adapters.lora_file import read_safetensors
from simpletuner.training.state import TrainState


def go_on_from_file(
    state: TrainState, settings: AdapterSection, batches: BatchStream, emit: Callable[[Event], None]
) -> None:
    """Take over what `init_lora_step` and `init_lora_ema` say of the file behind `init_lora`.

    Args:
        state: A state before its first step, whose trained weights are those of the file.
        batches: Where its batches come from.

    Raises:
        UserError: If the averages cannot be read or do not fit.
    """
    stated = steps_of(Path(str(settings.init_lora)))
    if settings.init_lora_step:
        state.step = settings.init_lora_step
        batches.skip_to(state.step)
        emit(Noticed("note", f"the run goes on after step {state.step} (init_lora_step); the optimizer begins anew"))
        if stated and stated != state.step:
            emit(Noticed("warning", f"init_lora_step = {state.step}, but the file says it was trained {stated} steps"))
    elif stated and settings.init_lora_step is None:
        emit(
            Noticed(
                "note",
                f"init_lora was trained for {stated} steps; this run counts from 0 (init_lora_step={stated} goes on)",
            )
        )
    if settings.init_lora_ema is not None:
        _take_averages(state, Path(settings.init_lora_ema))


def steps_of(path: Path) -> int:
    """Optimizer steps that an adapter file says it was trained for; 0 where it says nothing."""
    written = read_safetensors(path)[1].get("global_step", "")
    return int(written) if written.isdecimal() else 0


def _take_averages(state: TrainState, path: Path) -> None:
    """Let the average go on from a file: one of an adapter, or the raw averages of a checkpoint."""
    average, trainable = state.average, state.trainable
    assert average is not None  # a rule refuses init_lora_ema without use_ema
    updates = average.updates_after(state.step or steps_of(path))
    tensors = read_safetensors(path)[0]
    if tensors.keys() == trainable.parameters.keys():
        average.load_tensors(tensors, updates)
        return
    trained = trainable.tensors()
    try:
        trainable.adapter.load_start(path, trainable.family)
        average.load_tensors(trainable.tensors(), updates)
    finally:
        trainable.load_tensors(trained)
