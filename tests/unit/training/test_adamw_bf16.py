"""AdamW on bfloat16: against a float64 reference, and the ways bfloat16 optimizers stall."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from simpletuner.core.errors import UserError
from simpletuner.training.optim import adamw_bf16, buckets
from simpletuner.training.optim.adamw_bf16 import AdamWBF16
from simpletuner.training.optim.rounding import round_at_random

BETAS, EPS = (0.9, 0.999), 1e-6


def reference_adamw(start: Tensor, gradients: list[Tensor], lr: float, decay: float) -> Tensor:
    """AdamW of the paper in float64."""
    value, first, second = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for number, gradient in enumerate(gradients, 1):
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient.double()
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.double() ** 2
        step = (first / (1 - BETAS[0] ** number)) / ((second / (1 - BETAS[1] ** number)).sqrt() + EPS)
        value = value * (1 - lr * decay) - lr * step
    return value


def train(parameters: list[nn.Parameter], gradients: list[list[Tensor]], **settings: float) -> AdamWBF16:
    optimizer = AdamWBF16(parameters, betas=BETAS, eps=EPS, **settings)  # type: ignore[arg-type]
    for row in gradients:
        for parameter, gradient in zip(parameters, row, strict=True):
            parameter.grad = gradient.to(torch.bfloat16)
        optimizer.step()
    return optimizer


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_follows_the_float64_reference() -> None:
    gradients = [normals(64, 96, seed=number) for number in range(30)]
    parameter = nn.Parameter(normals(64, 96, seed=99))
    expected = reference_adamw(parameter.data, gradients, lr=3e-3, decay=0.1)
    moved = (expected - parameter.data.double()).abs().mean()
    train([parameter], [[g] for g in gradients], lr=3e-3, weight_decay=0.1, seed=1)
    error = parameter.data.double() - expected
    # Single values are rounded at every step; their mean over 6144 elements must not drift from none.
    assert error.mean().abs() < 4 * error.std() / error.numel() ** 0.5
    assert error.abs().mean() < 0.5 * moved


def test_moments_follow_the_float64_reference_closely() -> None:
    gradients = [normals(50, seed=number) for number in range(10)]
    parameter = nn.Parameter(normals(50, seed=99))
    optimizer = train([parameter], [[g] for g in gradients], lr=0.0)
    second = torch.zeros(50).double()
    for gradient in gradients:
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.double() ** 2
    assert torch.allclose(optimizer.state[parameter]["exp_avg_sq"].double(), second, rtol=1e-6)


def _mean_displacement_after_tiny_updates(rounding: bool, monkeypatch: pytest.MonkeyPatch) -> float:
    if not rounding:
        monkeypatch.setattr(adamw_bf16, "round_at_random", lambda values, seed: values)
    parameter = nn.Parameter(torch.ones(256, dtype=torch.bfloat16))
    gradient = torch.ones(256, dtype=torch.bfloat16)
    optimizer = AdamWBF16([parameter], lr=1e-6, betas=BETAS, eps=EPS, weight_decay=0.0, seed=3)
    for _ in range(10_000):
        parameter.grad = gradient
        optimizer.step()
    return 1.0 - parameter.data.double().mean().item()


def test_tiny_updates_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    # Constant gradient: every step moves by the learning rate, 10000 * 1e-6 in all.
    assert _mean_displacement_after_tiny_updates(True, monkeypatch) == pytest.approx(0.01, rel=0.05)


def test_rounding_to_nearest_would_lose_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # Guards the test above: without random rounding nothing moves at all.
    assert _mean_displacement_after_tiny_updates(False, monkeypatch) == 0.0


def _last_step_size(optimizer_class: type[torch.optim.Optimizer], dtype: torch.dtype) -> float:
    """Length of the step at the end of 5000 small gradients that follow one large one."""
    parameter = nn.Parameter(torch.zeros(2048, dtype=dtype))
    optimizer = optimizer_class([parameter], lr=1e-3, betas=BETAS, eps=EPS, weight_decay=0.0)  # type: ignore[call-arg]
    for number in range(5001):
        parameter.grad = torch.full_like(parameter, 1.0 if number == 0 else 1e-3)
        if number == 5000:
            parameter.data.zero_()
        optimizer.step()
    return parameter.data.double().abs().mean().item()


def test_recovers_from_a_gradient_spike_like_float32_adamw() -> None:
    expected = _last_step_size(torch.optim.AdamW, torch.float32)
    assert _last_step_size(AdamWBF16, torch.bfloat16) == pytest.approx(expected, rel=0.1)


def test_a_bfloat16_second_moment_would_never_recover() -> None:
    # Guards the test above: this is what the moment must not be kept in.
    moment = torch.ones((), dtype=torch.bfloat16)
    for _ in range(1000):
        moment.mul_(0.999)
    assert moment == 1.0


def test_random_rounding_is_unbiased_and_takes_only_neighbours() -> None:
    value = 1.0 + 0.3 * 2**-7  # three tenths of the way from 1 to the next bfloat16
    for sign in (1.0, -1.0):
        rounded = round_at_random(torch.full((1_000_003,), sign * value), seed=5).double()
        assert set(rounded.abs().tolist()) == {1.0, 1.0 + 2**-7}
        assert rounded.mean().item() == pytest.approx(sign * value, abs=1.5e-5)  # four standard errors


def test_values_that_bfloat16_has_stay() -> None:
    values = normals(4099).float()
    assert torch.equal(round_at_random(values.clone(), seed=6), values)


def test_rounding_depends_on_the_seed_only() -> None:
    values = torch.randn(1001, generator=torch.Generator().manual_seed(7))
    once, again, other = (round_at_random(values.clone(), seed) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_buckets_do_not_change_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(8, 4), (4, 8), (100,), (3, 3)]
    gradients = [[normals(*shape, seed=10 * n + k) for k, shape in enumerate(shapes)] for n in range(4)]

    def moments(bucket_elements: int) -> list[Tensor]:
        monkeypatch.setattr(buckets, "BUCKET_ELEMENTS", bucket_elements)
        parameters = [nn.Parameter(normals(*shape, seed=50)) for shape in shapes]
        optimizer = train(parameters, gradients, lr=0.0)
        return [optimizer.state[p]["exp_avg_sq"].clone() for p in parameters]

    for large, small in zip(moments(1 << 20), moments(64), strict=True):
        # Not to the bit: the fused kernel computes the ends of a vector in another order.
        assert torch.allclose(large, small, rtol=1e-6, atol=0)


def test_continues_bit_for_bit_from_a_saved_state() -> None:
    gradients = [[normals(33, 5, seed=n), normals(7, seed=n + 100)] for n in range(12)]

    def begin() -> list[nn.Parameter]:
        return [nn.Parameter(normals(33, 5, seed=200)), nn.Parameter(normals(7, seed=201))]

    straight, first, second = begin(), begin(), begin()
    train(straight, gradients, lr=1e-3, seed=8)
    saved = train(first, gradients[:5], lr=1e-3, seed=8).state_dict()
    continued = AdamWBF16(second, lr=1e-3, betas=BETAS, eps=EPS, seed=8)
    continued.load_state_dict(saved)
    for parameter, done in zip(second, first, strict=True):
        parameter.data.copy_(done.data)
    for row in gradients[5:]:
        for parameter, gradient in zip(second, row, strict=True):
            parameter.grad = gradient
        continued.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, second, strict=True))
    assert continued.state[second[0]]["exp_avg"].dtype == torch.float32


def test_other_number_formats_are_refused() -> None:
    with pytest.raises(UserError, match="float32") as error:
        AdamWBF16([nn.Parameter(torch.zeros(3))])
    assert "torch-adamw" in str(error.value)


def test_a_parameter_without_gradient_is_an_error() -> None:
    parameters = [nn.Parameter(normals(3)), nn.Parameter(normals(4))]
    optimizer = AdamWBF16(parameters)
    parameters[0].grad = normals(3)
    with pytest.raises(RuntimeError, match="no gradient"):
        optimizer.step()
