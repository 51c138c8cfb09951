"""The straight line through many points, in many dimensions: least squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGE = 1e-6  # of the mean variance of the inputs: enough to solve where inputs repeat one another


@dataclass(frozen=True)
class LinearMap:
    """y = weight @ x + bias.

    Attributes:
        weight: [D, C] float32.
        bias: [D] float32.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., C] -> [..., D]."""
        return inputs @ self.weight.T.to(inputs) + self.bias.to(inputs)


def fit_linear(inputs: Tensor, targets: Tensor) -> LinearMap:
    """The map with the smallest mean square of what it misses.

    Args:
        inputs: [N, C].
        targets: [N, D].

    Raises:
        ValueError: If there is no point.
    Source: normal equations of ordinary least squares, solved in float64 with a trace of Tikhonov's term.
    """
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets give no map")
    x, y = inputs.double(), targets.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    square = x.T @ x
    trace = torch.diagonal(square).mean().clamp(min=torch.finfo(torch.float64).tiny)
    weight = torch.linalg.solve(square + _RIDGE * trace * torch.eye(len(square), dtype=x.dtype), x.T @ y).T
    return LinearMap(weight.float(), (y_mean - weight @ x_mean).float())


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's r of two tensors of one shape, over all their elements; 0 where one of them is constant."""
    first, second = (values.double().flatten() - values.double().mean() for values in (one, other))
    norm = first.norm() * second.norm()
    return float(first @ second / norm) if norm > 0 else 0.0
