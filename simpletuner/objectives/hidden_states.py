"""Reading the output of blocks during one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn


@contextlib.contextmanager
def captured(blocks: Sequence[nn.Module], numbers: Sequence[int]) -> Iterator[Mapping[int, Tensor]]:
    """Collect the outputs [B, S, D] of the named blocks while open; filled once the pass is done.

    Closed before the backward pass, so what a checkpoint computes again there is not seen.
    """
    found: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            found[number] = output

        return hook

    hooks = [blocks[number].register_forward_hook(keep(number)) for number in numbers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
