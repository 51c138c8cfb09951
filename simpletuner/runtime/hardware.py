"""How busy the machine is while a run trains: looked at by a thread of its own, so that no step waits for it.

Processor and memory come from psutil; of NVIDIA cards the driver's own tool tells load, memory, power and heat.
"""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

FIRST_SECONDS: Final = 2.0
INTERVAL_SECONDS: Final = 15.0
_PATIENCE_SECONDS: Final = 5.0
_QUERY: Final = "utilization.gpu,memory.used,power.draw,temperature.gpu"
_MIB: Final = 1024**2


@dataclass(frozen=True)
class Load:
    """One look at the machine; not-a-number where something cannot be read.

    Attributes:
        cpu_percent, own_cpu_percent: Of all cores, by every program and by this process.
        memory_bytes: Resident set of this process.
        memory_percent: Of the machine's memory, by every program.
        device_percent: Share of the time in which the card computed.
        device_memory_bytes, device_watts, device_celsius: Of the card.
    """

    cpu_percent: float
    own_cpu_percent: float
    memory_bytes: int
    memory_percent: float
    device_percent: float = math.nan
    device_memory_bytes: float = math.nan
    device_watts: float = math.nan
    device_celsius: float = math.nan


class HardwareWatch:
    """Looks at the machine every so often until it is closed."""

    def __init__(self, tell: Callable[[Load], None], card: str | None, every_seconds: float = INTERVAL_SECONDS) -> None:
        """
        Args:
            tell: Receives each look, on the watch's own thread.
            card: The name by which the driver knows the CUDA device (`host.card_identity`); None where there is none.
            every_seconds: Time between two looks; the first comes sooner, the last when the watch is closed.
        """
        self._tell, self._every = tell, every_seconds
        self._card = card if card is not None and shutil.which("nvidia-smi") else None
        self._ends = threading.Event()
        self._process = psutil.Process()
        self._thread = threading.Thread(target=self._watch, name="hardware", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        # The first call of each, in each thread, only sets the beginning of what the next one measures.
        psutil.cpu_percent()
        self._process.cpu_percent()
        wait = min(FIRST_SECONDS, self._every)
        while not self._ends.wait(wait):
            self._tell(self._look())
            wait = self._every
        self._tell(self._look())

    def _look(self) -> Load:
        load = Load(
            cpu_percent=psutil.cpu_percent(),
            own_cpu_percent=self._process.cpu_percent() / (psutil.cpu_count() or 1),
            memory_bytes=self._process.memory_info().rss,
            memory_percent=psutil.virtual_memory().percent,
        )
        if self._card is None:
            return load
        percent, mebibytes, watts, celsius = ask_card(self._card)
        return Load(
            load.cpu_percent,
            load.own_cpu_percent,
            load.memory_bytes,
            load.memory_percent,
            percent,
            mebibytes * _MIB,
            watts,
            celsius,
        )


def ask_card(card: str) -> tuple[float, float, float, float]:
    """(load in percent, MiB in use, watts, degrees Celsius) of an NVIDIA card, as far as its driver tells."""
    command = ["nvidia-smi", f"--id={card}", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return (math.nan,) * 4
    return read_answer(done.stdout)


def read_answer(text: str) -> tuple[float, float, float, float]:
    """The four figures of the tool's first line; not-a-number for what a card does not tell ("[N/A]")."""
    fields = [field.strip() for field in text.splitlines()[0].split(",")] if text.strip() else []
    figures = [_figure(field) for field in fields[:4]]
    figures += [math.nan] * (4 - len(figures))
    return figures[0], figures[1], figures[2], figures[3]


def _figure(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        return math.nan


def cpu_name() -> str:
    """What the processor calls itself; its architecture where it does not."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            label, _, value = line.partition(":")
            if label.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
