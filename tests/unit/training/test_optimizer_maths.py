"""Optimizers against their published formulas in float64, and against the packages that have them too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.optimizer_settings import optimizer_arguments
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.training.optim.muon import orthogonalize
from simpletuner.training.optim.rounding import join_exactly, split_exactly
from simpletuner.training.optim.schedule_free import averaged_weights

# bitsandbytes says on a machine without CUDA that nothing is paged there.
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")

STEPS, SHAPE, RATE, DECAY = 25, (24, 64), 3e-3, 0.1
Reference = Callable[[list[Tensor], Tensor, dict[str, Any]], Tensor]


def draw(*shape: int, seed: int) -> Tensor:
    """Normal numbers that bfloat16 has, so that every number format begins at the same place."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def build(name: str, parameters: list[torch.nn.Parameter], rate: float, **settings: Any) -> torch.optim.Optimizer:
    row = OPTIMIZERS[name]
    arguments = {**optimizer_arguments(OptimizerSection(optimizer=name)), **settings}
    if row.takes_seed:
        arguments["seed"] = 3
    if row.compiles:
        arguments["compiled"] = False
    try:
        made: torch.optim.Optimizer = OPTIMIZERS.load(name)(parameters, lr=rate, **arguments)
    except ImportError as error:
        pytest.skip(f"needs {error.name}")
    return made


def train(name: str, gradients: list[Tensor], start: Tensor, rate: float = RATE, **settings: Any) -> Any:
    """The optimizer and its one parameter after all gradients."""
    dtype = torch.bfloat16 if OPTIMIZERS[name].parameter_dtype == "bf16" else torch.float32
    parameter = torch.nn.Parameter(start.to(dtype, copy=True))
    optimizer = build(name, [parameter], rate, **settings)
    for gradient in gradients:
        parameter.grad = gradient.to(dtype)
        optimizer.step()
    return optimizer, parameter


def adam(gradients: list[Tensor], value: Tensor, s: dict[str, Any], *, decoupled: bool = False) -> Tensor:
    first = second = torch.zeros_like(value)
    for number, gradient in enumerate(gradients, 1):
        if decoupled:
            value = value * (1 - RATE * s["weight_decay"])
        else:
            gradient = gradient + s["weight_decay"] * value
        first = s["betas"][0] * first + (1 - s["betas"][0]) * gradient
        second = s["betas"][1] * second + (1 - s["betas"][1]) * gradient**2
        divisor = (second / (1 - s["betas"][1] ** number)).sqrt() + s["eps"]
        value = value - RATE * first / (1 - s["betas"][0] ** number) / divisor
    return value


def adamw(gradients: list[Tensor], value: Tensor, s: dict[str, Any]) -> Tensor:
    return adam(gradients, value, s, decoupled=True)


def lion(gradients: list[Tensor], value: Tensor, s: dict[str, Any]) -> Tensor:
    moment = torch.zeros_like(value)
    for gradient in gradients:
        direction = (s["betas"][0] * moment + (1 - s["betas"][0]) * gradient).sign()
        value = value - RATE * (direction + s["weight_decay"] * value)
        moment = s["betas"][1] * moment + (1 - s["betas"][1]) * gradient
    return value


def sgd(gradients: list[Tensor], value: Tensor, s: dict[str, Any]) -> Tensor:
    moment = torch.zeros_like(value)
    for gradient in gradients:
        moment = s["momentum"] * moment + gradient + s["weight_decay"] * value
        value = value - RATE * moment
    return value


def rmsprop(gradients: list[Tensor], value: Tensor, s: dict[str, Any]) -> Tensor:
    second = torch.zeros_like(value)
    for gradient in gradients:
        gradient = gradient + s["weight_decay"] * value
        second = s["alpha"] * second + (1 - s["alpha"]) * gradient**2
        value = value - RATE * gradient / (second.sqrt() + s["eps"])
    return value


def adagrad(gradients: list[Tensor], value: Tensor, s: dict[str, Any]) -> Tensor:
    total = torch.zeros_like(value)
    for gradient in gradients:
        gradient = gradient + s["weight_decay"] * value
        total = total + gradient**2
        value = value - RATE * gradient / (total.sqrt() + s["eps"])
    return value


def ademamix(gradients: list[Tensor], value: Tensor, s: dict[str, Any]) -> Tensor:
    fast = slow = second = torch.zeros_like(value)
    beta1, beta2, beta3 = s["betas"]
    for number, gradient in enumerate(gradients, 1):
        fast, slow = beta1 * fast + (1 - beta1) * gradient, beta3 * slow + (1 - beta3) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        divisor = (second / (1 - beta2**number)).sqrt() + s["eps"]
        value = value - RATE * (fast / (1 - beta1**number) + s["alpha"] * slow) / divisor
        value = value * (1 - RATE * s["weight_decay"])
    return value


@pytest.mark.parametrize(
    ("name", "reference", "decay"),
    [
        ("torch-adam", adam, DECAY), ("torch-adamw", adamw, DECAY), ("torch-sgd", sgd, DECAY),
        ("torch-rmsprop", rmsprop, DECAY), ("torch-adagrad", adagrad, DECAY), ("bnb-adamw", adamw, DECAY),
        ("bnb-adam", adam, 0.0), ("bnb-lion", lion, 0.0), ("bnb-lion-paged", lion, 0.0), ("bnb-adagrad", adagrad, 0.0),
        ("bnb-ademamix", ademamix, 0.0), ("bnb-ademamix-paged", ademamix, 0.0),
    ],
)  # fmt: skip
def test_float32_optimizers_follow_the_formula(name: str, reference: Reference, decay: float) -> None:
    gradients, start = [draw(*SHAPE, seed=n) for n in range(STEPS)], draw(*SHAPE, seed=99)
    optimizer, parameter = train(name, gradients, start, weight_decay=decay)
    settings = {**OPTIMIZERS[name].settings, "weight_decay": decay}
    expected = reference([g.double() for g in gradients], start.double(), settings)
    del optimizer
    moved = (expected - start).abs().mean()
    assert (parameter.detach().double() - expected).abs().max() < 2e-3 * moved, name


@pytest.mark.parametrize(
    ("name", "reference", "share"),
    [
        ("optimi-adamw", adamw, 0.02), ("optimi-adam", adam, 0.02), ("optimi-lion", lion, 0.02),
        ("optimi-sgd", sgd, 0.02),
        # Moments in few bits: the direction is that of the formula, single values are not.
        ("ao-adamw8bit", adamw, 0.1), ("ao-adamw4bit", adamw, 0.25), ("ao-adamwfp8", adamw, 0.1),
        ("bnb-adamw8bit", adamw, 0.1), ("bnb-ademamix8bit", ademamix, 0.1), ("bnb-adagrad8bit", adagrad, 0.1),
    ],
)  # fmt: skip
def test_narrow_optimizers_follow_the_formula_on_average(name: str, reference: Reference, share: float) -> None:
    shape = (96, 64)  # large enough to be stored in 8 bits
    pull = draw(*shape, seed=50)
    gradients, start = [pull + 0.3 * draw(*shape, seed=n) for n in range(STEPS)], draw(*shape, seed=99)
    _, parameter = train(name, gradients, start, rate=RATE, weight_decay=0.0)
    gradients = [gradient.bfloat16().float() for gradient in gradients]
    settings = {**OPTIMIZERS[name].settings, "weight_decay": 0.0}
    expected = reference([g.double() for g in gradients], start.double(), settings) - start
    moved = parameter.detach().double() - start
    # The part of the way that is the formula's: rounding of single parameters has no direction.
    assert ((moved * expected).sum() / expected.square().sum()).item() == pytest.approx(1.0, abs=share), name


def prodigy(gradient_of: Callable[[Tensor], Tensor], value: Tensor, steps: int) -> tuple[Tensor, float]:
    """Algorithm 4 of the paper, float64; begins at 1e-3, where float32 still sees how far a value has come."""
    beta1, beta2, eps, first_d = 0.9, 0.999, 1e-8, 1e-3
    d, start, beta3 = first_d, value, math.sqrt(beta2)
    m = v = s = torch.zeros_like(value)
    r = 0.0
    for _ in range(steps):
        gradient = gradient_of(value)
        m = beta1 * m + (1 - beta1) * d * gradient
        v = beta2 * v + (1 - beta2) * d * d * gradient**2
        r = beta3 * r + d * d / first_d * float((gradient * (start - value)).sum())
        s = beta3 * s + d * d / first_d * gradient
        new = max(d, r / float(s.abs().sum()))
        value = value - d * m / (v.sqrt() + new * eps)
        d = new
    return value, d


def test_prodigy_finds_the_paper_s_step_size_on_a_quadratic() -> None:
    scales, start = 0.5 + draw(7, 5, seed=1).abs(), draw(7, 5, seed=2)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = build("prodigy", [parameter], 1.0, d0=1e-3)
    for _ in range(12):
        parameter.grad = scales * parameter.detach()
        optimizer.step()
    expected, d = prodigy(lambda value: scales.double() * value, start.double(), 12)
    assert optimizer.param_groups[0]["d"].item() == pytest.approx(d, rel=1e-3)
    assert torch.allclose(parameter.detach().double(), expected, atol=1e-3)
    assert d > 0.1  # it has left its first guess far behind


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "settings",
    [{}, {"use_bias_correction": True}, {"weight_decay": 0.1}, {"growth_rate": 1.3}, {"slice_p": 3, "d_coef": 2.0}],
)
def test_prodigy_equals_the_package(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    package = pytest.importorskip("prodigyopt").Prodigy
    ends = []
    for make in (package, OPTIMIZERS.load("prodigy")):
        parameters = [torch.nn.Parameter(draw(20, 7, seed=1)), torch.nn.Parameter(torch.zeros(5))]
        optimizer = make(parameters, safeguard_warmup=True, **settings)
        for step in range(40):
            for group in optimizer.param_groups:
                group["lr"] = min(1.0, step / 10)
            for number, parameter in enumerate(parameters):
                parameter.grad = parameter.detach() - 1 + 0.1 * draw(*parameter.shape, seed=100 * number + step)
            optimizer.step()
        ends.append([*(p.detach() for p in parameters), torch.tensor(float(optimizer.param_groups[0]["d"]))])
    for one, other in zip(*ends, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_prodigy_stops_adapting_when_it_is_told_to() -> None:
    parameter = torch.nn.Parameter(draw(7, 5, seed=2))
    optimizer = build("prodigy", [parameter], 1.0, adapts_steps=8)
    found = []
    for _ in range(12):
        parameter.grad = parameter.detach().clone()
        optimizer.step()
        found.append(optimizer.param_groups[0]["d"].item())
    assert found[6] < found[7] == found[8] == found[11]


def schedule_free(gradients: list[Tensor], start: Tensor, rates: list[float], decay: float) -> Tensor:
    """The average x of the paper's algorithm 1, float64."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    x = y = z = start
    second, total = torch.zeros_like(start), 0.0
    for number, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        second = beta2 * second + (1 - beta2) * gradient**2
        direction = gradient / ((second / (1 - beta2**number)).sqrt() + eps) + decay * y
        z = z - rate * direction
        total += max(rates[:number]) ** 2
        share = max(rates[:number]) ** 2 / total if total else 0.0
        x = (1 - share) * x + share * z
        y = (1 - beta1) * z + beta1 * x
    return x


def warmed_up(name: str, gradients: list[Tensor], start: Tensor, rates: list[float]) -> Tensor:
    dtype = torch.bfloat16 if OPTIMIZERS[name].parameter_dtype == "bf16" else torch.float32
    parameter = torch.nn.Parameter(start.to(dtype, copy=True))
    optimizer = build(name, [parameter], RATE)
    for gradient, rate in zip(gradients, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        parameter.grad = gradient.to(dtype)
        optimizer.step()
    return averaged_weights(optimizer)[0][1].detach()


def test_schedule_free_samples_the_paper_s_average() -> None:
    gradients, start = [draw(*SHAPE, seed=n) for n in range(STEPS)], draw(*SHAPE, seed=99)
    rates = [RATE * min(1.0, n / 5) for n in range(STEPS)]  # a warm-up that begins at zero
    expected = schedule_free([g.double() for g in gradients], start.double(), rates, 0.01)
    ours = warmed_up("adamw_schedulefree", gradients, start, rates)
    assert torch.allclose(ours.double(), expected, atol=1e-6)
    # bfloat16 parameters with their 16 further bits are float32 to the last bit.
    assert torch.equal(ours, warmed_up("adamw_schedulefree+no_kahan", gradients, start, rates))


def test_split_values_come_back_bit_for_bit() -> None:
    values = torch.cat([draw(997, seed=1) * torch.rand(997), torch.tensor([0.0, -0.0, 1e-40, -3e38])])
    rounded, rest = split_exactly(values.clone())
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(join_exactly(rounded, rest).view(torch.int32), values.view(torch.int32))
    assert ((rounded.float() - values).abs() <= values.abs() * 2**-8 + 1e-38).all()


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
def test_muon_s_iteration_is_that_of_the_post(shape: tuple[int, int]) -> None:
    matrices = torch.stack([draw(*shape, seed=n) for n in range(3)])
    made = orthogonalize(matrices, 5).double()
    for matrix, ours in zip(matrices.double(), made, strict=True):
        x = matrix / matrix.norm()
        for _ in range(5):
            # Of a wide and of a tall matrix: the singular values take the same polynomial.
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        assert (ours - x).abs().max() < 0.05
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        assert (ours * (left @ right)).sum() / len(_) == pytest.approx(0.95, abs=0.25)


@pytest.mark.parametrize("match", [True, False])
def test_muon_equals_pytorch_s(match: bool) -> None:
    library = pytest.importorskip("torch.optim._muon").Muon
    gradients, start = [draw(16, 64, seed=n) for n in range(STEPS)], draw(16, 64, seed=99)
    other = torch.nn.Parameter(start.clone())
    optimizer = library(
        [other], lr=RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw" if match else "original"
    )  # fmt: skip
    for gradient in gradients:
        other.grad = gradient
        optimizer.step()
    ours, parameter = train("muon", gradients, start, match_rms_adamw=match)
    del ours
    moved = (other.detach() - start).double()
    along = ((parameter.detach().double() - start) * moved).sum() / moved.square().sum()
    assert along.item() == pytest.approx(1.0, abs=0.02)


def test_soap_does_not_care_how_the_space_is_turned() -> None:
    # Adam works along the axes; in the eigenvectors of the gradients a turned problem is the same problem.
    turn, _ = torch.linalg.qr(draw(12, 12, seed=5))
    gradients, start = [draw(12, 12, seed=n) for n in range(15)], draw(12, 12, seed=99)
    _, plain = train("soap", gradients, start)
    _, turned = train("soap", [turn @ gradient for gradient in gradients], turn @ start)
    moved = plain.detach() - start
    assert moved.abs().mean() > 2 * RATE
    assert torch.allclose(turn.mT @ turned.detach() - start, moved, atol=1e-4)
    _, adam_plain = train("torch-adamw", gradients, start)
    _, adam_turned = train("torch-adamw", [turn @ gradient for gradient in gradients], turn @ start)
    assert not torch.allclose(turn.mT @ adam_turned.detach(), adam_plain.detach(), atol=1e-3)
