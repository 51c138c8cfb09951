"""Muon for convolutions, Adam for the rest: the small autoencoder learns faster by it than by Adam alone.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the size of the update is
matched to Adam's as in Liu et al. 2025 (arXiv 2502.16982).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for convolutions, Adam for everything else."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        adam_lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        matrices: Sequence[nn.Parameter] | None = None,
        block_rows: int = 64,
    ) -> None:
        """`matrices` are the parameters to orthogonalise; absent, all convolutions (weights [O, I, T, H, W]).

        Wide layers are taken in blocks of `block_rows`: the cost of orthogonalising grows with the square of the rows.
        """
        parameters = list(parameters)
        matrices = [p for p in parameters if p.ndim == 5] if matrices is None else list(matrices)
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        groups = [
            {"params": matrices, "lr": lr, "peak": lr, "kind": "muon", "block_rows": block_rows},
            {"params": rest, "lr": adam_lr, "peak": adam_lr, "kind": "adam"},
        ]
        super().__init__(groups, {"momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = self._muon(parameters, group) if group["kind"] == "muon" else self._adam(parameters, group)
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _muon(self, parameters: list[Tensor], group: dict) -> list[Tensor]:
        """Updates in the order of the parameters; equally large blocks of rows are made orthogonal at once."""
        blocks: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        for number, parameter in enumerate(parameters):
            state, gradient = self.state[parameter], parameter.grad
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            direction = torch.lerp(gradient.contiguous(), state["momentum"], group["momentum"]).flatten(1)
            for block in direction.split(group["block_rows"]):
                blocks.setdefault(tuple(block.shape), []).append((number, block))
        parts: list[list[Tensor]] = [[] for _ in parameters]
        for (rows, columns), members in blocks.items():
            size = 0.2 * max(rows, columns) ** 0.5
            together = orthogonal(torch.stack([block for _, block in members])).mul_(size)
            for (number, _), part in zip(members, together, strict=True):
                parts[number].append(part)
        return [torch.cat(part).view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]

    def _adam(self, parameters: list[Tensor], group: dict) -> list[Tensor]:
        first, second = group["betas"]
        for parameter in parameters:
            if "count" not in (state := self.state[parameter]):
                state |= {
                    "count": torch.zeros(()),
                    "mean": torch.zeros_like(parameter),
                    "square": torch.zeros_like(parameter),
                }
        if not parameters:
            return []
        states = [self.state[parameter] for parameter in parameters]
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        updates = []
        for state, mean, square in zip(states, means, squares, strict=True):
            state["count"] += 1
            unbiased = square / (1 - second ** state["count"])
            updates.append(mean / (1 - first ** state["count"]) / (unbiased.sqrt() + 1e-8))
        return updates


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [N, R, C] -> the nearest ones with orthonormal rows or columns, roughly, by five Newton-Schulz steps.

    The steps act on the small Gram matrices alone: each multiplies a matrix from the left by a polynomial of its own.
    They need float32: what rounding adds to the directions that hardly occur grows by ten with each.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    a, b, c = _NEWTON_SCHULZ
    gram = matrices @ matrices.mT
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + 1e-20
    gram = gram / trace
    identity = torch.eye(gram.shape[1])
    whole = None
    for _ in range(_STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * identity
        whole = factor if whole is None else factor @ whole
        gram = factor @ gram @ factor
    return whole * trace.rsqrt() @ matrices
