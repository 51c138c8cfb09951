"""One step of an ODE solver on the straight path x = (1 - sigma) z + sigma eps, for noise levels per sample.

All three have one signature: state, noise levels before and after, velocity, memory of the last step. They work in
terms of the predicted clean latents z = x - sigma v and the log ratio lambda = log((1 - sigma) / sigma); a first
step, and a step from pure noise, where lambda is infinite, is the exact first-order one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """What a multistep solver keeps of the step before; everything per sample [B] or as the state.

    Attributes:
        clean: Predicted clean latents of the step before.
        sigmas: [B] noise levels at which they were predicted.
        state: The state there, which a corrector starts from again.
        clean_before: Predicted clean latents one step earlier, for the corrector; None at its first use.
        sigmas_before: Their noise levels; None likewise.
    """

    clean: Tensor
    sigmas: Tensor
    state: Tensor
    clean_before: Tensor | None = None
    sigmas_before: Tensor | None = None


# State x, noise levels [B] now and next, velocity at x, memory -> next state and its memory.
Solver = Callable[[Tensor, Tensor, Tensor, Tensor, "Memory | None"], tuple[Tensor, "Memory | None"]]


def euler_step(
    x: Tensor, sigmas: Tensor, following: Tensor, velocity: Tensor, memory: Memory | None
) -> tuple[Tensor, Memory | None]:
    """x + (sigma' - sigma) v: exact where the velocity is constant along the way."""
    return x + _wide(following - sigmas, x) * velocity, None


def dpm_step(
    x: Tensor, sigmas: Tensor, following: Tensor, velocity: Tensor, memory: Memory | None
) -> tuple[Tensor, Memory | None]:
    """DPM-Solver++(2M) with data prediction.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2, with alpha = 1 - sigma.
    """
    clean = x - _wide(sigmas, x) * velocity
    direction = clean
    if memory is not None:
        ratio = _step_ratio(memory.sigmas, sigmas, following)
        direction = clean + _wide(ratio / 2, x) * (clean - memory.clean)
    return _first_order(x, sigmas, following, direction), Memory(clean, sigmas, x)


def unipc_step(
    x: Tensor, sigmas: Tensor, following: Tensor, velocity: Tensor, memory: Memory | None
) -> tuple[Tensor, Memory | None]:
    """UniPC of order 2 with data prediction and B(h) = exp(-h) - 1: corrects the present state, then predicts.

    The corrector starts again from the state before and uses what the model says here; the predictor looks back
    one step.

    Source: Zhao et al. 2023 (arXiv 2302.04867), UniP-2 and UniC-2.
    """
    clean = x - _wide(sigmas, x) * velocity
    corrected = x if memory is None else _corrected(clean, sigmas, memory)
    direction = clean
    if memory is not None:
        ratio = _step_ratio(memory.sigmas, sigmas, following)
        direction = clean + _wide(ratio / 2, x) * (clean - memory.clean)
    before = (None, None) if memory is None else (memory.clean, memory.sigmas)
    return _first_order(corrected, sigmas, following, direction), Memory(clean, sigmas, corrected, *before)


SOLVERS: Final[dict[tuple[str, int], Solver]] = {
    ("euler", 1): euler_step,
    ("dpm", 1): euler_step,  # on straight paths the first-order solver is Euler's
    ("dpm", 2): dpm_step,
    ("unipc", 2): unipc_step,
}


def _first_order(x: Tensor, sigmas: Tensor, following: Tensor, clean: Tensor) -> Tensor:
    """The exact solution while the clean latents stay what they are predicted to be."""
    share = _wide(following / sigmas, x)
    return share * x + (1 - share) * clean


def _corrected(clean: Tensor, sigmas: Tensor, memory: Memory) -> Tensor:
    """UniC: the present state again, from the one before, now that the model has been asked here."""
    x, ahead = memory.state, clean - memory.clean
    log_before, log_here = _log_ratio(memory.sigmas), _log_ratio(sigmas)
    h = log_here - log_before
    finite = torch.isfinite(h) & (h != 0)  # a sample that waits takes steps of length 0
    h = torch.where(finite, h, torch.ones_like(h))
    phi_1 = torch.expm1(-h)
    if memory.clean_before is None or memory.sigmas_before is None:
        push = 0.5 * ahead
    else:
        earlier = (_log_ratio(memory.sigmas_before) - log_before) / h
        known = torch.isfinite(earlier) & (earlier != 0)
        earlier = torch.where(known, earlier, -torch.ones_like(earlier))
        phi_2 = phi_1 / -h - 1
        phi_3 = phi_2 / -h - 0.5
        b_1, b_2 = phi_2 / phi_1, 2 * phi_3 / phi_1
        # Two equations, one for each difference: rho_1 + rho_2 = b_1, r rho_1 + rho_2 = b_2.
        rho_1 = torch.where(known, (b_1 - b_2) / (1 - earlier), torch.zeros_like(b_1))
        rho_2 = torch.where(known, b_1 - rho_1, torch.full_like(b_1, 0.5))
        looking_back = _wide(1 / earlier, x) * (memory.clean_before - memory.clean)
        push = _wide(rho_1, x) * looking_back + _wide(rho_2, x) * ahead
    plain = _first_order(x, memory.sigmas, sigmas, memory.clean)
    corrected = plain - _wide((1 - sigmas) * phi_1, x) * push
    # From pure noise there is nothing to correct with: the step was exact for what was known.
    return torch.where(_wide(finite, x), corrected, plain)


def _step_ratio(before: Tensor, sigmas: Tensor, following: Tensor) -> Tensor:
    """h' / h of this step's length in lambda over the last one's: 0 where one of them is infinite."""
    last = _log_ratio(sigmas) - _log_ratio(before)
    this = _log_ratio(following) - _log_ratio(sigmas)
    ratio = this / last
    return torch.where(torch.isfinite(this) & torch.isfinite(last) & (last != 0), ratio, torch.zeros_like(ratio))


def _log_ratio(sigmas: Tensor) -> Tensor:
    return torch.log1p(-sigmas) - torch.log(sigmas)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, …, 1]."""
    return values.reshape(-1, *(1 for _ in range(like.ndim - 1))).to(like.device)
