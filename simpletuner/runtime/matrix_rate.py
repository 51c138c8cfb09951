"""How many products of large matrices the device really does per second: what a step's rate is a share of.

Measured once for a device and a version of PyTorch, in about a second, and kept in a file for the next runs.
"""

from __future__ import annotations

import json
import time
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
    key = f"{device_name}, {torch.get_num_threads()} threads, {str(dtype).removeprefix('torch.')}, {torch.__version__}"
    rates = _read(kept)
    if key not in rates:
        rates[key] = measure_matrix_rate(device, dtype)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(kept, rates)
        except OSError:
            pass  # it is measured again next time
    return rates[key]


def measure_matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = _SECONDS) -> float:
    """FLOP per second, over about that many seconds and at least three products."""
    side = _SIDES.get(device.type, 1024)
    with torch.no_grad():
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = left @ right
        _wait(device)
        started, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - started < seconds:
            torch.mm(left, right, out=out)
            count += 1
            if device.type != "cpu" and count % 8 == 0:
                _wait(device)
        _wait(device)
    return 2.0 * side**3 * count / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
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
