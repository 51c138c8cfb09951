"""What this machine computes with, found without importing torch: for checks and forecasts.

A run itself asks torch (`host.py`); here the drivers' own tools are asked, which takes a fraction of
a second and works before anything is installed for the card.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

_PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes:
        card_name: The driver's name for the first card; empty when there is none.
        card_bytes: Its memory; 0 when unknown.
        capability: CUDA compute capability; (0, 0) for none.
        memory_bytes: The machine's own memory.
        cores: CPU cores this process may use.
    """

    card_name: str
    card_bytes: float
    capability: tuple[int, int]
    memory_bytes: float
    cores: int


def find_machine() -> Machine:
    """Ask NVIDIA's tool, then recognise Apple's chips; anything else counts as a CPU."""
    memory, cores = _memory_bytes(), usable_cores()
    name, size, capability = _nvidia()
    if not name and platform.system() == "Darwin" and platform.machine() == "arm64":
        name, size = _told(["sysctl", "-n", "machdep.cpu.brand_string"]) or "Apple", 0.75 * memory
    return Machine(name, size, capability, memory, cores)


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if sys.platform == "linux":
        return max(len(os.sched_getaffinity(0)), 1)
    return os.cpu_count() or 1


def _memory_bytes() -> float:
    if sys.platform != "win32":
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    import psutil

    return float(psutil.virtual_memory().total)


def _nvidia() -> tuple[str, float, tuple[int, int]]:
    text = _told(["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"])
    fields = [field.strip() for field in text.splitlines()[0].split(",")] if text else []
    if len(fields) != 3:
        return "", 0.0, (0, 0)
    try:
        major, _, minor = fields[2].partition(".")
        return fields[0], float(fields[1]) * 1024**2, (int(major), int(minor or 0))
    except ValueError:
        return fields[0], 0.0, (0, 0)


def _told(command: list[str]) -> str:
    """What a tool prints; empty when it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
