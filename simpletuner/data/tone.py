"""High dynamic range to standard range: what a PQ or HLG picture looks like on an ordinary screen.

Pure arithmetic on decoded pixels. Up to the knee, about 90 cd/m², light is kept as it is relative to white; above it
highlights are pressed together smoothly up to 1000 cd/m², the peak most material is graded for. All three colours of a
pixel are scaled alike, so that hues stay.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# ITU-T H.273 transfer characteristics.
HDR_TRANSFERS: Mapping[int, str] = {16: "PQ", 18: "HLG"}
BT709_PRIMARIES = 1  # ITU-T H.273 colour primaries; high dynamic range that names others is taken for BT.2020

PEAK_NITS = 1000.0  # brighter is shown as bright as this; nominal peak of HLG (BT.2100)
WHITE_NITS = 203.0  # graphics white of high dynamic range (BT.2408): what standard range shows as white
LARGEST_CODE = 65535
DISPLAY_GAMMA = 2.4  # BT.1886, for which standard range video is made
HLG_SYSTEM_GAMMA = 1.2  # at a peak of 1000 cd/m² (BT.2100)
LUMINANCE_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
# BT.2087: linear BT.2020 to linear BT.709.
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # fmt: skip
PQ_M1, PQ_M2, PQ_C1, PQ_C2, PQ_C3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
HLG_A, HLG_B, HLG_C = 0.17883277, 0.28466892, 0.55991073

Floats = NDArray[np.float32]


def to_standard_range(coded: NDArray[np.uint16], curve: str, *, wide: bool = True) -> NDArray[np.uint8]:
    """Pixels of high dynamic range as BT.709 pixels.

    Args:
        coded: RGB as coded by the curve, uint16 [..., 3], 65535 for the largest code value.
        curve: "PQ" or "HLG".
        wide: Whether the colours are those of BT.2020; else of BT.709.
    Returns:
        uint8 of the same shape.
    Source: ITU-R BT.2100 (curves), BT.2390 section 5.4.1 (the knee), BT.2087 (colours), BT.1886 (display).
    """
    light = _light(coded, curve)
    brightest = light.max(axis=-1, keepdims=True)
    light *= np.interp(brightest, *_compression()).astype(np.float32) / WHITE_NITS
    if wide:
        light = light @ TO_BT709.T
    shown: Floats = np.clip(light, 0.0, 1.0) ** np.float32(1 / DISPLAY_GAMMA)
    return np.rint(shown * 255).astype(np.uint8)


def _light(coded: NDArray[np.uint16], curve: str) -> Floats:
    """Light of the display in cd/m²."""
    if curve == "PQ":
        nits: Floats = _pq_table()[coded]
        return nits
    scene: Floats = _hlg_table()[coded]
    luminance = np.maximum(scene @ LUMINANCE_2020, 1e-6)[..., None]
    display: Floats = scene * (PEAK_NITS * luminance ** np.float32(HLG_SYSTEM_GAMMA - 1))
    return display


@functools.cache
def _pq_table() -> Floats:
    """Code -> cd/m²: the EOTF of BT.2100, table 4."""
    root = np.linspace(0, 1, LARGEST_CODE + 1) ** (1 / PQ_M2)
    linear = (np.maximum(root - PQ_C1, 0) / (PQ_C2 - PQ_C3 * root)) ** (1 / PQ_M1)
    return (10_000 * linear).astype(np.float32)


@functools.cache
def _hlg_table() -> Floats:
    """Code -> light of the scene in [0, 1]: the inverse OETF of BT.2100, table 5."""
    code = np.linspace(0, 1, LARGEST_CODE + 1)
    bright = (np.exp((code - HLG_C) / HLG_A) + HLG_B) / 12
    return np.where(code <= 0.5, code**2 / 3, bright).astype(np.float32)


def _pq_of(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """cd/m² -> PQ code in [0, 1]."""
    power = (nits / 10_000) ** PQ_M1
    return np.asarray(((PQ_C1 + PQ_C2 * power) / (1 + PQ_C3 * power)) ** PQ_M2)


@functools.cache
def _compression() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(cd/m², factor): by what the light of a pixel is multiplied, by its brightest colour.

    BT.2390: in PQ codes relative to the peak a Hermite spline leads from the knee to the new peak.
    """
    nits = np.concatenate([[0.0], np.geomspace(0.01, 10_000, 2048)])
    peak = float(_pq_of(np.array(PEAK_NITS)))
    code = np.minimum(_pq_of(nits) / peak, 1.0)
    largest = float(_pq_of(np.array(WHITE_NITS))) / peak
    knee = 1.5 * largest - 0.5
    part = np.clip((code - knee) / (1 - knee), 0, 1)
    spline = (
        (2 * part**3 - 3 * part**2 + 1) * knee
        + (part**3 - 2 * part**2 + part) * (1 - knee)
        + (-2 * part**3 + 3 * part**2) * largest
    )
    mapped = np.interp(np.where(code < knee, code, spline) * peak, _pq_of(nits), nits)
    return nits, np.where(code < knee, 1.0, mapped / np.maximum(nits, 1e-9))
