"""How many blocks compute their activations again in the backward pass: a dial between memory and time.

c of L blocks recomputed keep their input only; the others keep everything. Results are the same whatever the dial
says, to the last bit where dropout draws alike (PyTorch gives the random state back for the second pass). Recomputed
blocks can keep the results of their attention besides, the part that costs most to compute again in long clips; and
what is kept can wait in the machine's memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Protocol, cast

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from simpletuner.runtime.activation_offload import ActivationOffload

_ATTENTION: Final = "aten::_scaled_dot_product"  # all kernels of PyTorch's own attention that have a backward pass


class _Checkpointing(Protocol):
    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None: ...


class RecomputeDial:
    """The dial of one transformer.

    Attributes:
        blocks: How many blocks there are.
    """

    def __init__(
        self,
        transformer: nn.Module,
        blocks: Sequence[nn.Module],
        recomputed: int,
        *,
        keeps_attention: bool = False,
        offload: ActivationOffload | None = None,
    ) -> None:
        """Take over the transformer's checkpointing.

        Args:
            transformer: A Diffusers model; it asks for each block in turn.
            blocks: Its repeated blocks, in order.
            recomputed: How many of them compute again, 0 to all.
            keeps_attention: Whether those keep the results of their attention.
            offload: Where what is kept waits; None where it stays.
        """
        self.blocks = len(blocks)
        self._blocks = list(blocks)
        self._chosen: set[int] = set()
        self._offload = offload
        self._checkpoint = partial(checkpoint, use_reentrant=False)
        if keeps_attention:
            contexts = partial(create_selective_checkpoint_contexts, _keep_attention)
            self._checkpoint = partial(checkpoint, use_reentrant=False, context_fn=contexts)
        self.recomputed = recomputed
        cast(_Checkpointing, transformer).enable_gradient_checkpointing(self._call)

    @property
    def recomputed(self) -> int:
        """How many blocks compute again."""
        return len(self._chosen)

    @recomputed.setter
    def recomputed(self, count: int) -> None:
        if not 0 <= count <= self.blocks:
            raise ValueError(f"{count} of {self.blocks} blocks cannot be recomputed")
        self._chosen = {id(self._blocks[number]) for number in spread(count, self.blocks)}

    def turn_up(self) -> bool:
        """Recompute a quarter of the blocks more, for a step that did not fit; False where all are already."""
        if self.recomputed == self.blocks:
            return False
        self.recomputed = min(self.blocks, self.recomputed + -(-self.blocks // 4))
        return True

    def _call(self, block: nn.Module, *inputs: Any) -> Any:
        with self._kept(block):
            if id(block) in self._chosen:
                return self._checkpoint(block.__call__, *inputs)
            return block(*inputs)

    def _kept(self, block: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Where the block's saved tensors go."""
        if self._offload is None:
            return contextlib.nullcontext()
        if block is self._blocks[0]:
            self._offload.begin()
        return self._offload.waiting()


def _keep_attention(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operation.name().startswith(_ATTENTION)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def spread(count: int, total: int) -> list[int]:
    """`count` of `total` places, evenly, and the last one only if all are taken.

    The backward pass begins at the last block: recomputed, it would fill its memory again while everybody else's is
    still there, and nothing would be saved by it.
    """
    return [place * total // count for place in range(count)]
