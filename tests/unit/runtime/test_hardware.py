"""How busy the machine is, without a card, and what NVIDIA's tool answers."""

from __future__ import annotations

import math
import queue

import pytest

from simpletuner.runtime.hardware import HardwareWatch, Load, cpu_name, read_answer


def test_a_watch_looks_again_and_again_and_once_more_when_it_is_closed() -> None:
    told: queue.SimpleQueue[Load] = queue.SimpleQueue()
    watch = HardwareWatch(told.put, None, every_seconds=0.02)
    looks = [told.get(timeout=30) for _ in range(2)]
    watch.close()
    looks.append(told.get(timeout=30))
    for look in looks:
        assert look.memory_bytes > 1e6
        assert 0 < look.memory_percent <= 100
        assert look.cpu_percent >= 0
        assert look.own_cpu_percent >= 0
        assert math.isnan(look.device_watts)
    assert told.empty()
    assert cpu_name()


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("97, 40231, 612.44, 61\n", (97.0, 40231.0, 612.44, 61.0)),
        ("3, 1024, [N/A], 40\n", (3.0, 1024.0, math.nan, 40.0)),
        ("", (math.nan,) * 4),
        ("Failed to initialize NVML: Driver/library version mismatch\n", (math.nan,) * 4),
    ],
)
def test_what_the_tool_answers(text: str, figures: tuple[float, ...]) -> None:
    assert read_answer(text) == pytest.approx(figures, nan_ok=True)
