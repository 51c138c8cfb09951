"""Measures of videos whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from simpletuner.maths.video_measures import (
    colourfulness,
    flicker,
    likeness,
    luminance,
    measure_video,
    motion,
    sharpness,
)


def grey(planes: np.ndarray) -> np.ndarray:
    """Frames of luma planes in [0, 1]."""
    return np.repeat((planes * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def texture(height: int, width: int, seed: int = 0, cell: int = 4) -> np.ndarray:
    """Soft random structure in [0, 1] that repeats at its edges."""
    noise = np.random.default_rng(seed).random((height // cell, width // cell))
    spectrum = np.fft.fft2(np.kron(noise, np.ones((cell, cell))))
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    soft = np.fft.ifft2(spectrum * np.exp(-60 * (rows**2 + columns**2))).real
    return (soft - soft.min()) / (soft.max() - soft.min())


def test_luma_of_the_primaries():
    frames = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]], dtype=np.uint8)
    np.testing.assert_allclose(luminance(frames)[0, 0], [0.2126, 0.7152, 0.0722, 1.0], atol=1e-6)


@pytest.mark.parametrize("frequency", [0.3, 1.0, np.pi])
def test_sharpness_of_a_sine(frequency):
    amplitude = 0.4
    phase = 0.25 * np.pi if frequency == np.pi else 0.0  # at the highest frequency pixels meet one phase only
    line = 0.5 + amplitude * np.sin(frequency * np.arange(2000) + phase)
    planes = np.tile(line, (1, 8, 1)).astype(np.float32)
    assert sharpness(planes) == pytest.approx((2 - 2 * np.cos(frequency)) * amplitude / np.sqrt(2), rel=0.02)


def test_colourfulness():
    assert colourfulness(grey(np.random.default_rng(0).random((2, 8, 8)))) == 0
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 200
    assert colourfulness(red) == pytest.approx(0.3 * np.hypot(200, 100))  # one colour: no spread
    half = red.copy()
    half[:, :, 2:] = 0
    assert colourfulness(half) == pytest.approx(np.hypot(100, 50) + 0.3 * np.hypot(100, 50))


def test_flicker_is_the_amplitude_of_what_alternates():
    signs = np.where(np.arange(9) % 2, 1, -1)[:, None, None]
    everywhere = 0.5 + 0.1 * signs * np.ones((1, 64, 64))
    assert flicker(everywhere.astype(np.float32)) == pytest.approx(0.1, rel=1e-5)
    half = everywhere.copy()
    half[:, :, :32] = 0.5
    assert flicker(half.astype(np.float32)) == pytest.approx(0.05, rel=1e-5)


def test_a_still_picture_and_an_even_fade_do_not_flicker():
    still = np.tile(texture(64, 64), (9, 1, 1)).astype(np.float32)
    assert flicker(still) == 0
    fade = (np.linspace(0.2, 0.8, 9)[:, None, None] * np.ones((1, 64, 64))).astype(np.float32)
    assert flicker(fade) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("across", "down"), [(0, 0), (2, 0), (0, -3), (3, 4)])
def test_motion_is_the_speed_of_a_picture_that_moves(across, down):
    picture = texture(128, 192)
    planes = np.stack([np.roll(picture, (down * t, across * t), (0, 1)) for t in range(5)]).astype(np.float32)
    expected = np.hypot(across, down) / 128 * 25 * 100
    assert motion(planes, 25.0) == pytest.approx(expected, rel=0.1, abs=1e-3)


def test_motion_of_a_part_and_of_nothing():
    picture = texture(128, 192)
    planes = np.stack([np.roll(picture, 4 * t, 1) for t in range(5)])
    planes[:, :64] = picture[:64]
    # A few blocks see both halves.
    assert motion(planes.astype(np.float32), 25.0) == pytest.approx(2 / 128 * 25 * 100, rel=0.15)
    flat = (np.linspace(0, 1, 5)[:, None, None] * np.ones((1, 128, 192))).astype(np.float32)
    assert motion(flat, 25.0) == 0


def test_large_pictures_move_as_fast_as_small_ones():
    picture = texture(256, 512, cell=8)
    planes = np.stack([np.roll(picture, 8 * t, 1) for t in range(4)]).astype(np.float32)
    assert motion(planes, 10.0) == pytest.approx(8 / 256 * 10 * 100, rel=0.1)


def test_likeness():
    one = grey(np.stack([texture(64, 64, seed) for seed in range(3)]))
    assert likeness(one, one) == pytest.approx(1)
    noise = grey(np.random.default_rng(5).random((3, 64, 64)))
    assert abs(likeness(one, noise)) < 0.1
    blurred = (one // 32 * 32).astype(np.uint8)
    assert 0.5 < likeness(one, blurred) < 1
    assert likeness(one, one[:2]) == pytest.approx(1)
    with pytest.raises(ValueError, match="cannot be compared"):
        likeness(one, one[:, :32])


def test_likeness_of_flat_pictures_has_a_closed_form():
    dark, bright = np.full((1, 16, 16, 3), 51, np.uint8), np.full((1, 16, 16, 3), 153, np.uint8)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert likeness(dark, bright) == pytest.approx(expected, rel=1e-4)


def test_one_frame_has_no_measures_of_time():
    assert set(measure_video(grey(texture(32, 32)[None]), 25.0)) == {"sharpness", "colourfulness"}
    still = measure_video(np.repeat(grey(texture(64, 64)[None]), 9, axis=0), 25.0)
    assert set(still) == {"sharpness", "colourfulness", "flicker", "motion"}
    assert still["motion"] == pytest.approx(0, abs=1e-6)
    assert still["sharpness"] > 0
