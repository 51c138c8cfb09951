"""Activations that wait for the backward pass in the machine's memory instead of on the card.

What autograd saves inside `waiting()` is copied to pinned memory on a stream of its own while the card goes on
computing, and comes back in the order of the backward pass, one ahead of its use. Values do not change. Small tensors,
parameters and what is no plain tensor stay where they are. On the CPU there is no other place; copies are made all
the same, so that tests see what a card would do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

SMALL_BYTES: Final = 1 << 20  # below, a copy costs more than it frees


@dataclass
class _Waiting:
    """One saved tensor: where it waits, and what has to be waited for."""

    stored: Tensor
    left: torch.cuda.Event | None = None
    source: Tensor | None = None  # kept until the copy is known to be finished
    here: Tensor | None = None
    arrived: torch.cuda.Event | None = None
    spent: bool = False


@dataclass
class ActivationOffload:
    """Saved tensors of one model.

    Attributes:
        device: Where it is computed.
        small_bytes: Tensors below stay.
        moved_bytes: How much has been sent away so far.
    """

    device: torch.device
    small_bytes: int = SMALL_BYTES
    moved_bytes: int = 0
    _order: list[_Waiting] = field(default_factory=list)

    def __post_init__(self) -> None:
        is_cuda = self.device.type == "cuda"
        self._out = torch.cuda.Stream(self.device) if is_cuda else None
        self._back = torch.cuda.Stream(self.device) if is_cuda else None

    def begin(self) -> None:
        """Forget what an earlier pass left that never went backward."""
        self._order.clear()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While open, what autograd saves is sent away."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    def _pack(self, tensor: Tensor) -> Tensor | _Waiting:
        if type(tensor) is not Tensor and not isinstance(tensor, nn.Parameter):
            return tensor
        if isinstance(tensor, nn.Parameter) or tensor.is_leaf or tensor.device != self.device:
            return tensor  # parameters, and what a frozen layer multiplies with, are there anyway
        if tensor.nbytes < self.small_bytes or not tensor.is_floating_point():
            return tensor
        self._tidy()
        waiting = _Waiting(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._out is not None))
        if self._out is None:
            waiting.stored.copy_(tensor)
        else:
            self._out.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._out):
                waiting.stored.copy_(tensor, non_blocking=True)
                waiting.left, waiting.source = self._out.record_event(), tensor
        self.moved_bytes += tensor.nbytes
        self._order.append(waiting)
        return waiting

    def _unpack(self, packed: Tensor | _Waiting) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        found = packed.here if packed.here is not None else self._fetch(packed)
        if packed.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(packed.arrived)
            # It was allocated for the stream that brought it.
            found.record_stream(torch.cuda.current_stream(self.device))
        packed.here, packed.source, packed.spent = None, None, True
        self._fetch_next(packed)
        return found

    def _fetch(self, waiting: _Waiting) -> Tensor:
        if waiting.source is not None:  # not gone yet, or nobody has looked
            return waiting.source
        if self._back is None:
            return waiting.stored.clone()
        with torch.cuda.stream(self._back):
            if waiting.left is not None:
                self._back.wait_event(waiting.left)
            found = waiting.stored.to(self.device, non_blocking=True)
            waiting.arrived = self._back.record_event()
        return found

    def _fetch_next(self, done: _Waiting) -> None:
        """Bring what was saved before `done`: the backward pass will ask for it next."""
        while self._order and self._order[-1].spent:
            self._order.pop()
        if self._back is not None and self._order and self._order[-1].here is None:
            self._order[-1].here = self._fetch(self._order[-1])

    def _tidy(self) -> None:
        """Let go of device tensors whose copies are finished; the host does not wait for them."""
        while self._order and self._order[-1].spent:
            self._order.pop()
        for waiting in reversed(self._order):
            if waiting.source is None:
                break
            if waiting.left is not None and waiting.left.query():
                waiting.source = None
