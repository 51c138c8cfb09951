"""A step that did not fit into memory: freed, made smaller by the dial of recomputed blocks, and taken again.

The state is the one between two steps, the position in the data is put back, and all draws belong to samples, so the
repeated step is the same step. Nothing is skipped and nothing is averaged away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from simpletuner.core.errors import UserError
from simpletuner.runtime.host import release_memory
from simpletuner.training.state import TrainState

# What the allocator of the CPU says; it has no error of its own.
_HOST_SAYS: Final = "can't allocate memory"


class DoesNotFitError(UserError):
    """A step that needs more memory than there is, with every block recomputed already; the state is whole."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, of an accelerator or of the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _HOST_SAYS in str(error)
    )


def make_room(state: TrainState, step: int, tell: Callable[[str], None]) -> None:
    """Turn the dial up after step `step` did not fit, and say so.

    Call it when the error is gone: what it keeps alive is what has to be freed.

    Raises:
        DoesNotFitError: If all blocks are recomputed already.
    """
    release_memory(state.trainable.device)
    dial = state.trainable.dial
    if dial is None or not dial.turn_up():
        raise DoesNotFitError(
            f"step {step} does not fit into memory",
            "Every block is recomputed already; the steps before it are saved",
            "Lower train_batch_size, the clips' frames or resolution, set enable_group_offload, or choose a smaller "
            "base_model_precision; then start the same command again to go on",
        )
    tell(
        f"step {step} did not fit into memory: from here on {dial.recomputed} of {dial.blocks} blocks are computed "
        "again in the backward pass, and the step is repeated"
    )
