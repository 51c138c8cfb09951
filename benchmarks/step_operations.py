"""How many operations one training step takes: ours beside a bare loop, for each block and for the rest.

    python benchmarks/step_operations.py

Both are those of `step_overhead.py`: rank-16 LoRA on attention in bfloat16, nothing recomputed. PyTorch's dispatcher is
asked for every operation that computes something (views and allocations do not); the difference between models of
three and two blocks is one block. The update is left out: how many operations it takes depends on the optimizer, not
on the model. Where a graphics card waits for its host, these are what it waits for.

"cuda" is an estimate on the CPU: what has one kernel on such a card counts as one operation forward and two backward
(`torch.nn.functional.rms_norm`), and attention goes backward as it does there. Nothing is run on one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import step_overhead
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from simpletuner.models.ltxvideo import attention, norms

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach"}
PHASES = ("forward", "backward")


class Counted(TorchDispatchMode):
    """Counts what computes, by phase of the step and name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.phase = "forward"
        self.is_open = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if self.is_open and func.namespace == "aten" and not func.is_view and name not in FREE:
            self.counts[self.phase, name] += 1
        return func(*args, **(kwargs or {}))


class _OneKernel(torch.autograd.Function):
    """A norm that counts as its kernel on a card does."""

    @staticmethod
    def forward(ctx: Any, counted: Counted, tokens: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        counted.is_open = False
        with torch.enable_grad():
            ctx.given = tokens.detach().requires_grad_()
            ctx.normed = _RMS_NORM(ctx.given, tokens.shape[-1:], weight, eps)
        result = ctx.normed.detach().clone()
        counted.is_open = True
        counted.counts[counted.phase, "rms_norm"] += 1
        ctx.counted = counted
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:  # type: ignore[override]
        ctx.counted.is_open = False
        (found,) = torch.autograd.grad(ctx.normed, ctx.given, gradient)
        ctx.counted.is_open = True
        ctx.counted.counts[ctx.counted.phase, "rms_norm"] += 2
        return None, found, None, None


_RMS_NORM = functional.rms_norm
_BACKWARD = torch.autograd.backward


@contextlib.contextmanager
def phases_of(counted: Counted) -> Iterator[None]:
    """Tells forward, backward and update apart."""

    def backward(*args: Any, **kwargs: Any) -> None:
        counted.phase = "backward"
        _BACKWARD(*args, **kwargs)
        counted.phase = "update"

    with mock.patch.object(torch.autograd, "backward", backward):
        yield


@contextlib.contextmanager
def as_on_cuda(counted: Counted) -> Iterator[None]:
    """Takes the ways of the code that are taken on a card."""

    def one(tokens: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        found: Tensor = _OneKernel.apply(counted, tokens, weight, eps)  # type: ignore[no-untyped-call]
        return found

    with (
        mock.patch.object(functional, "rms_norm", one),
        mock.patch.object(norms, "_is_one_node", return_value=False),
        mock.patch.object(attention, "_profits", return_value=False),
    ):
        yield


def count_step(side: str, layers: int, device: str) -> Counter[tuple[str, str]]:
    """Operations of the third step of a model of so many blocks."""
    size = dataclasses.replace(step_overhead.SIZES["tiny"], layers=layers)
    with tempfile.TemporaryDirectory() as folder:
        loop = step_overhead.SIDES[side](step_overhead.write_checkpoint(Path(folder) / "model", size))
    loop(2)
    counted = Counted()
    with phases_of(counted), as_on_cuda(counted) if device == "cuda" else contextlib.nullcontext(), counted:
        loop(1)
    return counted.counts


def measure(show: Callable[[str], None], names: bool) -> None:
    """Count and tell."""
    show("| | per block: forward | backward | the rest: forward | backward | 28 blocks, forward and backward |")
    show("|---|---|---|---|---|---|")
    for device in ("cpu", "cuda"):
        for side in ("bare", "ours"):
            two, three = (count_step(side, layers, device) for layers in (2, 3))
            block = three - two
            rest = two - Counter({key: 2 * count for key, count in block.items()})
            sums = [sum(count for (phase, _), count in part.items() if phase == wanted) for part in (block, rest)
                    for wanted in PHASES]  # fmt: skip
            whole = 28 * sum(sums[:2]) + sum(sums[2:])
            show(f"| {side}, {device} | {' | '.join(map(str, sums))} | {whole:,} |")
            if names:
                show(f"\n{', '.join(f'{phase} {name} {count}' for (phase, name), count in block.most_common())}\n")


def main() -> None:
    """Count and print; see the top of the file."""
    parser = argparse.ArgumentParser(description="Operations of a training step beside a bare loop.")
    parser.add_argument("--names", action="store_true", help="also tell which operations a block takes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure(print, arguments.names)


if __name__ == "__main__":
    main()
