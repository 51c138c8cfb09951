"""Running averages against their closed form, and why they are float32."""

from __future__ import annotations

import pytest
import torch

from simpletuner.maths.ema import average_into, decay_at


def test_memory_rises_and_stays() -> None:
    rising = [decay_at(n, 0.995) for n in range(4)]
    assert rising == pytest.approx([0.0, 1 / 10, 2 / 11, 3 / 12])
    assert decay_at(10**6, 0.995) == 0.995
    assert [decay_at(n, 0.9, warmup_updates=2) for n in range(4)] == [0.0, 0.0, 0.9, 0.9]


def test_constant_memory_is_the_closed_form() -> None:
    """a_n = d^n a_0 + (1 - d) sum over k of d^(n - k) w_k."""
    weights = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    average = torch.zeros(7)
    for weight in weights:
        average_into([average], [weight], 0.9)
    powers = 0.1 * 0.9 ** torch.arange(49, -1, -1, dtype=torch.float64)
    assert torch.allclose(average.double(), (powers[:, None] * weights.double()).sum(0), atol=1e-6)


def test_small_moves_of_bfloat16_weights_are_not_lost() -> None:
    average, weight = torch.ones(1), torch.full((1,), 1.5, dtype=torch.bfloat16)
    for _ in range(200):
        average_into([average], [weight], 0.995)
    assert average.item() == pytest.approx(1.5 - 0.5 * 0.995**200, rel=1e-4)
