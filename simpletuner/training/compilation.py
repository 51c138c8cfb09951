"""Blocks compiled by torch.compile, one graph for all blocks and each shape they meet.

Only what is trained is compiled: where no gradient is kept (videos, evaluation), blocks compute as they are, because
a shape that is seen for a minute does not earn its compilation. Streaming, adapters and recomputing stay outside of
the graphs and work as without them. Where nothing before the first block is trained, its input needs no gradient, and
it would get a graph of its own; it computes that gradient all the same, for nothing. In a LoRA step that is less than
the products of q, k and v once (0.4 % of a step of 28 blocks), and it halves what must be compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, Final

import torch
from torch import Tensor, nn

from simpletuner.config.sections.model import ModelSection

# Shapes whose graphs are kept; torch gives up compiling after 8 otherwise.
_KEPT_GRAPHS: Final = 256
_HIDDEN: Final = "hidden_states"


class Compilation:
    """The compiled blocks of one transformer, and what compiling them has cost.

    Attributes:
        graphs: How many graphs were made.
        seconds: What making them took, backward passes and kernels included.
    """

    def __init__(self, blocks: Sequence[nn.Module], settings: ModelSection) -> None:
        """Replace the forward pass of each block; nothing is compiled before it is first used.

        Args:
            blocks: Their adapters must be attached, and what streams them must come later.
            settings: The options of torch.compile.
        """
        self.graphs = 0
        self.seconds = 0.0
        self._told = 0
        self._started = 0.0
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._arguments: dict[str, Any] = {
            "backend": settings.dynamo_backend,
            "mode": settings.dynamo_mode if settings.dynamo_backend == "inductor" else None,
            "fullgraph": settings.dynamo_fullgraph,
            "dynamic": settings.dynamo_dynamic,
        }
        for name in ("recompile_limit", "accumulated_recompile_limit"):
            setattr(torch._dynamo.config, name, max(_KEPT_GRAPHS, getattr(torch._dynamo.config, name)))
        self._handler = torch._dynamo.callback.callback_handler
        self._handler.register_start_callback(self._begin)
        self._handler.register_end_callback(self._end)
        for block in blocks:
            block.forward = self._wrapped(block)  # type: ignore[method-assign]

    def news(self) -> str:
        """What was compiled since this was last asked, for a message; empty for nothing."""
        if self.graphs == self._told:
            return ""
        new, self._told = self.graphs - self._told, self.graphs
        more = "" if new == self.graphs else f" more, {self.graphs} in all"
        return (
            f"compiled {new} graph{'s' if new > 1 else ''} of a block{more}; compiling has taken {self.seconds:.0f} s "
            "so far (the first step of each shape)"
        )

    def close(self) -> None:
        """Stop listening to the compiler."""
        self._handler.remove_start_callback(self._begin)
        self._handler.remove_end_callback(self._end)

    def _wrapped(self, block: nn.Module) -> Callable[..., Any]:
        plain = block.forward
        # The function, not the bound method: all blocks share what is compiled for one.
        function = plain.__func__ if isinstance(plain, MethodType) else type(block).forward
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, **self._arguments)
        compiled = self._compiled[function]

        def compute(*args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                # Diffusers hands the hidden states over by name, and by place where blocks are recomputed.
                hidden, *rest = args or (kwargs.pop(_HIDDEN),)
                return compiled(block, _wanting_gradient(hidden), *rest, **kwargs)
            return plain(*args, **kwargs)

        return compute

    def _begin(self, args: Any) -> None:
        self._started = time.perf_counter()

    def _end(self, args: Any) -> None:
        self.seconds += time.perf_counter() - self._started
        self.graphs += args.callback_trigger is torch._dynamo.callback.CallbackTrigger.DYNAMO


def _wanting_gradient(hidden: Tensor) -> Tensor:
    """What runs through the blocks, such that every block is traced alike."""
    return hidden if hidden.requires_grad else hidden.detach().requires_grad_()


def compile_blocks(blocks: Sequence[nn.Module], settings: ModelSection) -> Compilation | None:
    """Compile the blocks if the options say so; that this machine can is proven before (`recipes/kernels.py`)."""
    return None if settings.dynamo_backend == "no" else Compilation(blocks, settings)
