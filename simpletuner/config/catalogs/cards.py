"""Compute cards: what each can deliver, for forecasts. Data rows and pure look-ups only.

Rates are what a good program reaches, not what a data sheet promises. `measured` says which of them
somebody has clocked; everything else is estimated from data sheets and published runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import UserError

TERA, GIGA, GIB = 1e12, 1e9, 1024**3


@dataclass(frozen=True)
class CardRow:
    """One kind of card.

    Attributes:
        label: Name for people.
        memory_bytes: Memory of the card; 0 where the machine's own memory counts.
        matrix_flops: bf16 products of large matrices per second, eager PyTorch.
        attention_flops: Attention's products per second with PyTorch's own kernel, heads of width 64.
        convolution_flops: 3D convolutions per second.
        bandwidth_bytes: Memory traffic per second.
        launch_seconds: Host time to start one kernel from Python, autograd included.
        context_bytes: What the driver, its libraries and the allocator take for themselves.
        link_bytes: From pinned memory to the card per second.
        capability: CUDA compute capability; (0, 0) for anything else.
        patterns: Lower-case regular expressions that the machine's own name for the card matches.
        measured: Which fields have been measured, and by whom; empty when all are estimates.
        per_core: Whether the rates are those of one CPU core.
    """

    label: str
    memory_bytes: float
    matrix_flops: float
    attention_flops: float
    convolution_flops: float
    bandwidth_bytes: float
    launch_seconds: float = 15e-6
    context_bytes: float = 0.8 * GIGA
    link_bytes: float = 25 * GIGA
    capability: tuple[int, int] = (0, 0)
    patterns: tuple[str, ...] = ()
    measured: str = ""
    per_core: bool = False

    @property
    def has_fp8(self) -> bool:
        """Whether its matrix units compute in 8-bit floating point (Ada, Hopper and later)."""
        return self.capability >= (8, 9)


def _cuda(
    label: str,
    memory_gib: float,
    rates: tuple[float, float, float, float],
    capability: tuple[int, int],
    *patterns: str,
    launch_seconds: float = 15e-6,
    measured: str = "",
) -> CardRow:
    """A CUDA card; `rates` are TFLOP/s of matrices, attention and convolutions, and TB/s of memory."""
    matrix, attention, convolution, bandwidth = (rate * TERA for rate in rates)
    return CardRow(
        label, memory_gib * GIB, matrix, attention, convolution, bandwidth, launch_seconds,
        # PCIe 5 from Hopper on, 4 from Ampere on, 3 before (the project's performance notes, section 5.4).
        link_bytes=(50 if capability >= (9, 0) else 25 if capability >= (8, 0) else 12) * GIGA,
        capability=capability, patterns=patterns, measured=measured,
    )  # fmt: skip


# H200, L40S, 4090 and 3090: the project's performance notes, section 3. The others are scaled from the
# nearest of these by the data sheets' dense bf16 rate (with fp32 accumulation) and bandwidth.
CARDS: Mapping[str, CardRow] = {
    "h200": _cuda("H200 141 GB", 139.8, (650, 300, 260, 4.0), (9, 0), r"\bh200\b",
                  measured="ceilings only: 788 TFLOP/s in a product of 8192 x 8192 matrices, 4.3 TB/s in a copy"),
    "h100": _cuda("H100 80 GB", 79.6, (650, 300, 260, 2.9), (9, 0), r"\bh100\b"),
    "a100-80": _cuda("A100 80 GB", 79.3, (230, 150, 110, 1.7), (8, 0), r"\ba100\b.*80"),
    "a100-40": _cuda("A100 40 GB", 39.4, (230, 150, 110, 1.35), (8, 0), r"\ba100\b.*40", r"\ba100\b"),
    "l40s": _cuda("L40S 48 GB", 44.5, (260, 190, 130, 0.80), (8, 9), r"\bl40s\b"),
    "rtx5090": _cuda("RTX 5090 32 GB", 31.4, (190, 155, 115, 1.55), (12, 0), r"\brtx 5090\b"),
    "rtx4090": _cuda("RTX 4090 24 GB", 23.5, (145, 120, 86, 0.92), (8, 9), r"\brtx 4090\b"),
    "rtx4080": _cuda("RTX 4080 16 GB", 15.6, (86, 71, 51, 0.66), (8, 9), r"\brtx 4080\b"),
    "rtx4070": _cuda("RTX 4070 12 GB", 11.6, (51, 42, 30, 0.46), (8, 9), r"\brtx 4070\b"),
    "rtx3090": _cuda("RTX 3090 24 GB", 23.6, (60, 50, 33, 0.85), (8, 6), r"\brtx 3090\b"),
    "rtx3060": _cuda("RTX 3060 12 GB", 11.6, (21, 18, 12, 0.33), (8, 6), r"\brtx 3060\b"),
    # No bf16 units: bf16 is emulated, which is slow.
    "t4": _cuda("T4 16 GB", 14.6, (6, 5, 4, 0.27), (7, 5), r"\bt4\b"),
    "apple-max": CardRow(
        "Apple M-series Max 48 GB", 36 * GIB, 13 * TERA, 8 * TERA, 6 * TERA, 0.35 * TERA, 25e-6, 1.0 * GIGA,
        patterns=(r"\bapple m\d (max|ultra)\b",),
    ),
    "apple": CardRow(
        "Apple M-series 16 GB", 11 * GIB, 3.5 * TERA, 2.2 * TERA, 1.6 * TERA, 0.10 * TERA, 25e-6, 1.0 * GIGA,
        patterns=(r"\bapple\b",),
    ),
    "cpu": CardRow(
        "CPU", 0, 0.1 * TERA, 0.05 * TERA, 0.05 * TERA, 8 * GIGA, 5e-6, 0.6 * GIGA, link_bytes=8 * GIGA, per_core=True,
    ),
}  # fmt: skip

# Shown where no card is named and the machine has none.
USUAL = ("h200", "rtx4090", "rtx3090")


def find_card(name: str) -> CardRow:
    """The row that a user names: "h200", "RTX 4090", "4090".

    Raises:
        UserError: If there is none, with the nearest and all names.
    """
    key = re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("nvidia").removeprefix("geforce")
    plain = {re.sub(r"[^a-z0-9]", "", known): known for known in CARDS}
    for candidate in (key, f"rtx{key}", f"{key}80"):
        if candidate in plain:
            return CARDS[plain[candidate]]
    raise UserError(
        f"unknown card '{name}'",
        f"Known: {', '.join(CARDS)}, all",
        did_you_mean(key, list(plain)) or "Choose one that is near yours",
        where="--card",
    )


def match_card(device_name: str) -> CardRow | None:
    """The row for what a driver calls its card ("NVIDIA GeForce RTX 4090"); None for an unknown one."""
    lowered = device_name.lower()
    return next((row for row in CARDS.values() for word in row.patterns if re.search(word, lowered)), None)
