"""Clipping: off means untouched, elements and norms are not confused."""

from __future__ import annotations

import pytest
import torch

from simpletuner.maths.clipping import clip_gradients, gradient_norm


def _gradients(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [(4 * torch.randn(shape, generator=generator)).to(dtype) for shape in ((3, 5), (7,), (2, 2))]


@pytest.mark.parametrize("method", ["value", "norm"])
def test_zero_is_off(method: str) -> None:
    gradients = _gradients()
    clip_gradients(gradients, 0.0, method)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(gradients, _gradients(), strict=True))


@pytest.mark.parametrize("method", ["value", "norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_returns_the_norm_from_before(method: str, dtype: torch.dtype) -> None:
    expected = torch.cat([g.flatten() for g in _gradients(dtype)]).double().norm().item()
    norm = clip_gradients(_gradients(dtype), 1.0, method)  # type: ignore[arg-type]
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(expected, rel=1e-5)


def test_value_limits_each_element_and_leaves_small_ones() -> None:
    gradients = _gradients()
    clip_gradients(gradients, 1.0, "value")
    for clipped, original in zip(gradients, _gradients(), strict=True):
        assert torch.equal(clipped, original.clamp(-1.0, 1.0))
    assert gradient_norm(gradients) > 1.0


def test_norm_limits_the_whole_and_keeps_the_direction() -> None:
    gradients = _gradients()
    clip_gradients(gradients, 1.0, "norm")
    assert gradient_norm(gradients).item() == pytest.approx(1.0, rel=1e-5)
    after, before = (torch.cat([g.flatten() for g in some]) for some in (gradients, _gradients()))
    assert torch.nn.functional.cosine_similarity(after, before, dim=0).item() == pytest.approx(1.0, abs=1e-6)


def test_norm_below_the_limit_is_left_bit_for_bit() -> None:
    gradients = _gradients()
    clip_gradients(gradients, 1e3, "norm")
    assert all(torch.equal(a, b) for a, b in zip(gradients, _gradients(), strict=True))


def test_broken_gradients_show_in_the_norm() -> None:
    gradients = _gradients()
    gradients[1][3] = float("inf")
    assert not torch.isfinite(clip_gradients(gradients, 1.0, "value"))


def test_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        clip_gradients(_gradients(), -1.0, "norm")
