"""The machine the run is on: which device computes, what it is called, how much memory it has."""

from __future__ import annotations

import functools
import gc
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class Host:
    """What was found on this machine.

    Attributes:
        device: Where the model is computed.
        device_name: Name for people ("NVIDIA H200", "CPU, 2 threads").
        memory_bytes: Memory of the device; of the machine when the device is the CPU.
    """

    device: torch.device
    device_name: str
    memory_bytes: int

    @property
    def capability(self) -> tuple[int, int]:
        """CUDA compute capability; (0, 0) where there is none to compare."""
        if self.device.type != "cuda" or torch.version.hip is not None:
            return 0, 0
        return torch.cuda.get_device_capability(self.device)

    @property
    def pins_memory(self) -> bool:
        """Whether copies to the device profit from page-locked memory."""
        return self.device.type == "cuda"


def find_host() -> Host:
    """Choose the best device there is: CUDA (or ROCm), then Apple's, then the CPU."""
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        facts = torch.cuda.get_device_properties(device)
        return Host(device, facts.name, facts.total_memory)
    memory = psutil.virtual_memory().total
    if torch.backends.mps.is_available():
        return Host(torch.device("mps"), "Apple GPU", memory)
    return Host(torch.device("cpu"), f"CPU, {torch.get_num_threads()} threads", memory)


def card_identity(device: torch.device) -> str | None:
    """The name by which NVIDIA's driver knows a CUDA device, whatever number it has here; None for other devices."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA devices may round the factors of float32 products to 10 bits of mantissa (TF32); elsewhere nothing
    changes."""
    precision = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]


def used_memory(device: torch.device) -> int:
    """Bytes in use: the allocator's peak on CUDA, the process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _own_process().memory_info().rss


@functools.cache
def _own_process() -> psutil.Process:
    """Looking the process up costs a fifth of a millisecond, every step."""
    return psutil.Process()


@functools.cache
def spare_collections() -> None:
    """Let garbage collections pass over everything that is there now: hundreds of thousands of objects of libraries.

    To be asked for when these are imported and no model is loaded yet. Once per process: later calls do nothing, since
    they would keep what an earlier run has left.
    """
    gc.freeze()


def release_memory() -> None:
    """Give back what dropped models held, so that the next one finds room."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was never used
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
