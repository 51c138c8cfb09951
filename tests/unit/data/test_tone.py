"""High dynamic range shown in standard range, against the figures of the recommendations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.data.tone import WHITE_NITS, to_standard_range

WHITES = {"PQ": 0.5807, "HLG": 0.7498}  # BT.2408, table 1: codes of graphics white, 203 cd/m²
FROM_BT709 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087


def pq(nits: np.ndarray) -> np.ndarray:
    """The inverse EOTF of BT.2100, table 4."""
    power = (np.asarray(nits, float) / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(nits: np.ndarray) -> np.ndarray:
    """The inverse OOTF at a peak of 1000 cd/m² and the OETF of BT.2100, table 5."""
    shown = np.asarray(nits, float) / 1000
    luminance = max(float(shown @ [0.2627, 0.6780, 0.0593]), 1e-12)
    scene = shown * luminance ** (1 / 1.2 - 1)
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-12)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def shown(nits: object, curve: str) -> list[int]:
    coded = {"PQ": pq, "HLG": hlg}[curve](np.asarray(nits, float))
    return to_standard_range(np.rint(coded * 65535).astype(np.uint16), curve).tolist()


@pytest.mark.parametrize("curve", ["PQ", "HLG"])
def test_graphics_white_has_the_code_of_the_recommendation(curve: str) -> None:
    code = np.full(3, round(WHITES[curve] * 65535), np.uint16)
    assert to_standard_range(code, curve).tolist() == shown([WHITE_NITS] * 3, curve)


@pytest.mark.parametrize("curve", ["PQ", "HLG"])
def test_light_below_the_knee_stays_as_it_is_relative_to_white(curve: str) -> None:
    for nits in (0.0, 1.0, 10.0, 50.0, 85.0):
        expected = 255 * (nits / WHITE_NITS) ** (1 / 2.4)
        assert shown([nits] * 3, curve) == pytest.approx([expected] * 3, abs=1)


@given(
    st.lists(st.floats(0, 400), min_size=3, max_size=3), st.floats(0.1, 1.0), st.sampled_from(["PQ", "HLG"])
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_brighter_light_is_never_shown_darker_and_both_curves_agree(
    light: list[float], less: float, curve: str
) -> None:
    bright = shown(FROM_BT709 @ light, curve)
    dim = shown(FROM_BT709 @ light * less, curve)
    # Beside a bright colour, a channel without light is the rest of two rounded ones: black up to a few steps.
    assert all(one >= other - (1 if other > 4 else 4) for one, other in zip(bright, dim, strict=True))
    assert bright == pytest.approx(shown(FROM_BT709 @ light, "PQ"), abs=2)


@pytest.mark.parametrize("colour", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.8, 0.55, 0.4)])
def test_hues_stay_when_highlights_are_pressed_together(colour: tuple[float, ...]) -> None:
    """Ratios of the colours in linear light are those of the scene, from dim to beyond white."""
    for nits in (40.0, 300.0):
        linear = (np.array(shown(FROM_BT709 @ (np.array(colour) * nits), "PQ")) / 255) ** 2.4
        assert linear / linear.max() == pytest.approx(np.array(colour) / max(colour), abs=0.03)


def test_nothing_above_the_peak_is_lost_and_narrow_colours_stay() -> None:
    assert shown([1000.0] * 3, "PQ") == shown([10_000.0] * 3, "PQ") == [255] * 3
    red = np.rint(pq(np.array([100.0, 0.0, 0.0])) * 65535).astype(np.uint16)
    assert to_standard_range(red, "PQ", wide=False)[1:].tolist() == [0, 0]
