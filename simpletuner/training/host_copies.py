"""Copies of tensors on the host that do not make an accelerator wait.

What is copied is what the tensor holds once the work given to the device so far is done, whatever changes it
afterwards. The copies may be read after `wait`, from any thread.
"""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopies:
    """Takes copies of one moment; copies from the host's own memory are there at once."""

    def __init__(self) -> None:
        self._arrival: torch.cuda.Event | None = None

    def take(self, tensor: Tensor) -> Tensor:
        """A contiguous copy in the tensor's own number format; from CUDA it lands in page-locked memory."""
        tensor = tensor.detach()
        if tensor.device.type == "cpu":
            return tensor.clone(memory_format=torch.contiguous_format)
        if tensor.device.type != "cuda":
            return tensor.to("cpu").contiguous()
        landed = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        landed.copy_(tensor, non_blocking=True)
        if self._arrival is None:
            self._arrival = torch.cuda.Event()
        self._arrival.record(torch.cuda.current_stream(tensor.device))
        return landed

    def wait(self) -> None:
        """Return when all copies have landed."""
        if self._arrival is not None:
            self._arrival.synchronize()


def host_copy(tensor: Tensor) -> Tensor:
    """A contiguous copy on the host, there when the call returns."""
    return tensor.detach().to("cpu", copy=True).contiguous()
