"""A step that did not fit into memory: freed, made smaller, and taken again.

First more blocks are recomputed, which changes no number; then the batch is computed in parts, which rounds its sums
otherwise. The state is the one between two steps, the position in the data is put back, and all draws belong to
samples, so the repeated step is the same step. Nothing is skipped and nothing is averaged away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from simpletuner.core.errors import UserError
from simpletuner.runtime.host import release_memory
from simpletuner.training.build import Trainable
from simpletuner.training.state import TrainState

# What the allocator of the CPU says; it has no error of its own.
_HOST_SAYS: Final = "can't allocate memory"


class DoesNotFitError(UserError):
    """A step that needs more memory than there is, clip by clip with every block recomputed; the state is whole."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, of an accelerator or of the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _HOST_SAYS in str(error)
    )


def make_room(state: TrainState, step: int, tell: Callable[[str], None]) -> None:
    """Let a step need less after step `step` did not fit, and say so.

    Call it when the error is gone: what it keeps alive is what has to be freed.

    Raises:
        DoesNotFitError: If a single clip does not fit with all blocks recomputed.
    """
    release_memory()
    done = need_less(state.trainable)
    if not done:
        raise DoesNotFitError(
            f"step {step} does not fit into memory",
            "Every block is recomputed already, and each clip computed alone; the steps before it are saved",
            "Lower the clips' frames or resolution, set enable_group_offload, or choose a smaller "
            "base_model_precision; then start the same command again to go on",
        )
    if state.trainable.passes.tokens is not None:
        state.add_up_gradients()
    tell(f"step {step} did not fit into memory: from here on {done}, and the step is repeated")


def need_less(trainable: Trainable) -> str:
    """Turn the next dial; what is done from here on, empty where nothing is left to turn."""
    dial, passes = trainable.dial, trainable.passes
    if dial is not None and dial.turn_up():
        return f"{dial.recomputed} of {dial.blocks} blocks are computed again in the backward pass"
    if passes.turn_down():
        return f"batches are computed in parts of at most {passes}"
    return ""
