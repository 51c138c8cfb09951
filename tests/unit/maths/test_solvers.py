"""Solvers on the straight path: against Diffusers' schedulers, exact where they must be, of the order they claim."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from simpletuner.maths.solvers import SOLVERS, Memory, Solver, dpm_step, euler_step, unipc_step

LEVELS = torch.tensor([0.95, 0.8, 0.61, 0.5, 0.33, 0.2], dtype=torch.float64)
NAMED = [pytest.param(solver, id=f"{name}-{order}") for (name, order), solver in SOLVERS.items()]


def velocity(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.sin(3 * x) + x * sigma - 0.3 * x**2 * torch.cos(sigma)


def walk(solver: Solver, levels: Tensor, x: Tensor, speed: Any = velocity) -> list[Tensor]:
    memory: Memory | None = None
    places = []
    for now, following in itertools.pairwise(levels):
        x, memory = solver(x, now.repeat(len(x)), following.repeat(len(x)), speed(x, now), memory)
        places.append(x)
    return places


def library(kind: Any, **settings: Any) -> list[Tensor]:
    scheduler = kind(
        num_train_timesteps=1000, use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=2,
        lower_order_final=False, **settings,
    )  # fmt: skip
    scheduler.set_timesteps(5)
    scheduler.sigmas, scheduler.timesteps = LEVELS.clone(), LEVELS[:-1] * 1000
    scheduler._step_index = scheduler._begin_index = 0
    scheduler.num_inference_steps = len(LEVELS)
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    places = []
    for number, level in enumerate(LEVELS[:-1]):
        x = scheduler.step(velocity(x, level), scheduler.timesteps[number], x, return_dict=False)[0]
        places.append(x)
    return places


def test_unipc_is_the_librarys() -> None:
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    for ours, theirs in zip(walk(unipc_step, LEVELS, start), library(UniPCMultistepScheduler), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_dpm_is_the_librarys() -> None:
    """Its last step is of first order there, and it computes in single precision."""
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    ours, theirs = walk(dpm_step, LEVELS, start), library(DPMSolverMultistepScheduler)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours[:-1], theirs[:-1], strict=True))


@pytest.mark.parametrize("solver", NAMED)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_straight_flow_is_followed_exactly(solver: Solver, steps: int) -> None:
    """With the true velocity noise - latents any number of steps ends on the path, from pure noise too."""
    latents, noise = torch.randn(2, 3, 4, dtype=torch.float64).unbind(0)
    for begin, end in ((1.0, 0.3), (0.9, 0.05), (1.0, 0.999)):
        levels = torch.linspace(begin, end, steps + 1, dtype=torch.float64)
        x = (1 - begin) * latents + begin * noise
        arrived = walk(solver, levels, x, lambda x, sigma: noise - latents)[-1]
        assert torch.allclose(arrived, (1 - end) * latents + end * noise, atol=1e-10)


def arrive(steps: int, solver: Solver) -> Tensor:
    start = torch.linspace(-0.5, 0.5, 4, dtype=torch.float64).reshape(1, 4)
    return walk(solver, torch.linspace(0.9, 0.3, steps + 1, dtype=torch.float64), start)[-1]


@functools.cache
def truth() -> Tensor:
    """Where the path ends, a thousand times closer than what is judged by it."""
    return arrive(1_500, dpm_step)


@pytest.mark.parametrize(("solver", "order"), [(euler_step, 1), (dpm_step, 2), (unipc_step, 2)])
def test_order_of_accuracy(solver: Solver, order: int) -> None:
    """Halving the steps divides the error by 2 to the order."""
    errors = [float((arrive(steps, solver) - truth()).abs().max()) for steps in (40, 80)]
    assert math.log2(errors[0] / errors[1]) > order - 0.2


@pytest.mark.parametrize("solver", NAMED)
def test_samples_have_their_own_levels(solver: Solver) -> None:
    """A batch of two paths gives what each gives alone."""
    paths = torch.tensor([[0.9, 0.7, 0.4], [1.0, 0.95, 0.6]], dtype=torch.float64)
    start = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, memory = start, None
    for now, following in itertools.pairwise(paths.T):
        x, memory = solver(x, now, following, velocity(x, now[:, None]), memory)
    for number in range(2):
        alone = walk(solver, paths[number], start[number : number + 1])[-1]
        assert torch.allclose(x[number], alone[0], atol=1e-12)
