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
_BLOCK_ROWS = 64


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
    ) -> None:
        """`matrices` are the parameters to orthogonalise; absent, all convolutions (weights [O, I, T, H, W])."""
        parameters = list(parameters)
        matrices = [p for p in parameters if p.ndim == 5] if matrices is None else list(matrices)
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        groups = [
            {"params": matrices, "lr": lr, "peak": lr, "kind": "muon"},
            {"params": rest, "lr": adam_lr, "peak": adam_lr, "kind": "adam"},
        ]
        super().__init__(groups, {"momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._muon(parameter, group) if group["kind"] == "muon" else self._adam(parameter, group)
                    parameter.add_(update, alpha=-group["lr"])

    def _muon(self, parameter: Tensor, group: dict) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        direction = torch.lerp(gradient.contiguous(), state["momentum"], group["momentum"]).flatten(1)
        size = 0.2 * max(min(len(direction), _BLOCK_ROWS), direction.shape[1]) ** 0.5
        # Wide layers in blocks of rows: the cost of orthogonalising grows with the square of the rows.
        blocks = [orthogonal(block) for block in direction.split(_BLOCK_ROWS)]
        return torch.cat(blocks).mul_(size).view(parameter.shape)

    def _adam(self, parameter: Tensor, group: dict) -> Tensor:
        state, (first, second) = self.state[parameter], group["betas"]
        if "count" not in state:
            state |= {
                "count": torch.zeros(()),
                "mean": torch.zeros_like(parameter),
                "square": torch.zeros_like(parameter),
            }
        state["count"] += 1
        state["mean"].lerp_(parameter.grad, 1 - first)
        state["square"].lerp_(parameter.grad.square(), 1 - second)
        mean, square = (state[k] / (1 - b ** state["count"]) for k, b in (("mean", first), ("square", second)))
        return mean / (square.sqrt() + 1e-8)


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, roughly, by five Newton-Schulz steps.

    The steps act on the small Gram matrix alone: each multiplies the matrix from the left by a polynomial of it.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    a, b, c = _NEWTON_SCHULZ
    gram = matrix @ matrix.T
    gram = gram / (gram.diagonal().sum() + 1e-20)
    scale = (gram.new_ones(()) / (matrix.square().sum() + 1e-20)).sqrt()
    identity = torch.eye(len(gram))
    whole = identity
    for _ in range(_STEPS):
        factor = a * identity + b * gram + c * (gram @ gram)
        whole, gram = factor @ whole, factor @ gram @ factor
    return (whole * scale) @ matrix
