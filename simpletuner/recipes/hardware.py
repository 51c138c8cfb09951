"""The machine in a run's journal: what it is, and how busy it is while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import psutil

from simpletuner.events.types import Event, HardwareFound, HardwareSampled
from simpletuner.runtime.hardware import HardwareWatch, Load, cpu_name
from simpletuner.runtime.host import Host, card_identity
from simpletuner.runtime.machine import usable_cores


@contextmanager
def watch_hardware(host: Host, emit: Callable[[Event], None]) -> Iterator[None]:
    """Tell what the machine is, and every quarter of a minute how busy it is, for the length of the block."""
    emit(
        HardwareFound(
            cpu_name(),
            usable_cores(),
            psutil.virtual_memory().total,
            host.device_name,
            host.memory_bytes if host.device.type != "cpu" else 0,
        )
    )

    def tell(load: Load) -> None:
        emit(HardwareSampled(**asdict(load)))

    watch = HardwareWatch(tell, card_identity(host.device))
    try:
        yield
    finally:
        watch.close()
