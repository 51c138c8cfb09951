"""How many blocks compute their activations again in the backward pass: a dial between memory and time.

c of L blocks recomputed keep their input only; the others keep everything. Results are the same whatever the dial
says, to the last bit where dropout draws alike (PyTorch gives the random state back for the second pass).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from torch import nn
from torch.utils.checkpoint import checkpoint


class _Checkpointing(Protocol):
    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None: ...


class RecomputeDial:
    """The dial of one transformer.

    Attributes:
        blocks: How many blocks there are.
    """

    def __init__(self, transformer: nn.Module, blocks: Sequence[nn.Module], recomputed: int) -> None:
        """Take over the transformer's checkpointing.

        Args:
            transformer: A Diffusers model; it asks for each block in turn.
            blocks: Its repeated blocks, in order.
            recomputed: How many of them compute again, 0 to all.
        """
        self.blocks = len(blocks)
        self._blocks = list(blocks)
        self._chosen: set[int] = set()
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
        if id(block) in self._chosen:
            return checkpoint(block.__call__, *inputs, use_reentrant=False)
        return block(*inputs)


def spread(count: int, total: int) -> list[int]:
    """`count` of `total` places, evenly: so that no long row of neighbours keeps everything at once."""
    return [(2 * place + 1) * total // (2 * count) for place in range(count)]
