"""The most memory that some work holds at once: by the allocator on CUDA, by counting live tensors elsewhere.

Elsewhere the resident set says little: allocators keep what was freed, and the system lends more than it has. So
every tensor that an operation returns is followed until it is gone; what kernels use inside themselves is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


class MemoryMeter:
    """Measures while it is open.

    Attributes:
        peak_bytes: The most that was held at once since it was opened, what was there before included; known when
            it is closed.
    """

    def __init__(self, device: torch.device, held: Iterable[Tensor] = ()) -> None:
        """
        Args:
            device: Where the work is done.
            held: What is there from the start; counted once, and needed elsewhere than on CUDA only.
        """
        self._device = device
        self._live = None if device.type == "cuda" else LiveTensors(held)
        self.peak_bytes = 0

    def __enter__(self) -> MemoryMeter:
        if self._live is not None:
            self._live.__enter__()
        else:
            torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def begin_anew(self) -> int:
        """The most since it was opened or begun anew; from now on what comes next is measured."""
        if self._live is not None:
            peak, self._live.peak_bytes = self._live.peak_bytes, self._live.live_bytes
            return peak
        peak = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self.peak_bytes = self._live.peak_bytes
        else:
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)


class LiveTensors(TorchDispatchMode):
    """Follows every tensor that an operation returns while it is open; storages are counted, views are not.

    Attributes:
        live_bytes: Held now.
        peak_bytes: The most so far.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._known: dict[int, weakref.ref[Any]] = {}
        self.live_bytes = self.peak_bytes = 0
        for tensor in held:
            self._follow(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: Tensor) -> None:
        if is_traceable_wrapper_subclass(tensor):
            for name in tensor.__tensor_flatten__()[0]:
                self._follow(getattr(tensor, name))
            return
        storage = tensor.untyped_storage()
        number, size = id(storage), storage.nbytes()
        if number in self._known or not size:
            return
        # PyTorch gives a storage the same Python object for as long as it lives.
        self._known[number] = weakref.ref(storage, lambda _: self._forget(number, size))
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _forget(self, number: int, size: int) -> None:
        del self._known[number]
        self.live_bytes -= size
