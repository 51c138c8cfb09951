"""Least squares: exact where a line exists, the best one elsewhere."""

from __future__ import annotations

import pytest
import torch

from simpletuner.maths.linear_map import correlation, fit_linear


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(400, 12, generator=generator), torch.randn(3, 12, generator=generator), torch.randn(3)


def test_a_line_is_found_exactly(points):
    inputs, weight, bias = points
    found = fit_linear(inputs, inputs @ weight.T + bias)
    torch.testing.assert_close(found.weight, weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bias, bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found(inputs.view(4, 100, 12)), (inputs @ weight.T + bias).view(4, 100, 3))


def test_no_other_map_misses_less(points):
    inputs, weight, bias = points
    targets = torch.tanh(inputs @ weight.T + bias)
    found = fit_linear(inputs, targets)
    best = (found(inputs) - targets).square().mean()
    for _ in range(5):
        other = found.weight + 0.01 * torch.randn_like(found.weight)
        assert ((inputs @ other.T + found.bias) - targets).square().mean() > best


def test_inputs_that_repeat_one_another_do_no_harm(points):
    inputs, weight, bias = points
    twice = torch.cat([inputs, inputs, torch.zeros(400, 2)], 1)
    targets = inputs @ weight.T + bias
    torch.testing.assert_close(fit_linear(twice, targets)(twice), targets, rtol=1e-3, atol=1e-3)
    few = fit_linear(inputs[:2], targets[:2])  # fewer points than numbers in each
    torch.testing.assert_close(few(inputs[:2]), targets[:2], rtol=1e-3, atol=1e-3)


def test_nothing_to_fit_is_told():
    with pytest.raises(ValueError, match="no map"):
        fit_linear(torch.empty(0, 3), torch.empty(0, 2))


def test_correlation():
    values = torch.randn(50)
    assert correlation(values, 3 * values + 1) == pytest.approx(1)
    assert correlation(values, -values) == pytest.approx(-1)
    assert correlation(values, torch.ones(50)) == 0
