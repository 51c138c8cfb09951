"""How many products of large matrices the device really does per second: what a step's rate is a share of.

Measured once for a device and a version of PyTorch, in about a second, and kept in a file for the next runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch

from simpletuner.core.files import write_json_atomic

_SIDES: Final = {"cuda": 8192, "mps": 2048, "cpu": 1024}
_SECONDS: Final = 0.3


def matrix_rate(device: torch.device, device_name: str, dtype: torch.dtype, kept: Path) -> float:
    """FLOP per second of square products in `dtype`; one multiply-add counts as 2.

    Args:
        device: Where to compute.
        device_name: What it is called in the file.
        dtype: Number format of the factors.
        kept: JSON file of earlier measurements; one that cannot be read or written is no fault.
    """
    key = f"{told_machine(device_name)}, {str(dtype).removeprefix('torch.')}, {torch.__version__}"
    return remember([key], lambda: [measure_matrix_rate(device, dtype)], kept)[0]


def told_machine(device_name: str) -> str:
    """What a rate depends on beside the numbers: the device and the threads that feed it."""
    return f"{device_name}, {torch.get_num_threads()} threads"


def remember(keys: Sequence[str], measure: Callable[[], Sequence[float]], kept: Path) -> list[float]:
    """Figures that were measured together, from the file if all are there.

    Args:
        keys: Their names in the file.
        measure: Gives them in that order.
        kept: JSON file of earlier measurements; one that cannot be read or written is no fault.
    """
    figures = _read(kept)
    if not figures.keys() >= set(keys):
        figures |= dict(zip(keys, measure(), strict=True))
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(kept, figures)
        except OSError:
            pass  # it is measured again next time
    return [figures[key] for key in keys]


def measure_matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = _SECONDS) -> float:
    """FLOP per second, over about that many seconds and at least three products."""
    side = _SIDES.get(device.type, 1024)
    with torch.no_grad():
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = left @ right
        wait_for(device)
        started, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - started < seconds:
            torch.mm(left, right, out=out)
            count += 1
            if device.type != "cpu" and count % 8 == 0:
                wait_for(device)
        wait_for(device)
    return 2.0 * side**3 * count / (time.perf_counter() - started)


def wait_for(device: torch.device) -> None:
    """Let the device finish what it has been told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: float(value) for key, value in found.items()} if isinstance(found, dict) else {}
