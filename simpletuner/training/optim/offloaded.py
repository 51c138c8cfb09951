"""An optimizer that runs on the CPU for parameters of a card: their gradients travel there, the new values come back.

The card then holds no state of the optimizer. The host waits once per step, for the gradients; that, the two
copies and the arithmetic of the CPU are the price.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from simpletuner.training.optim.released import Build


class OffloadedOptimizer(Optimizer):
    """Wraps an optimizer over copies of the parameters in RAM."""

    def __init__(self, groups: Sequence[dict[str, Any]], build: Build) -> None:
        """Copy the parameters.

        Args:
            groups: Parameters and the settings they differ in.
            build: Makes the optimizer of the copies.
        """
        super().__init__([dict(group) for group in groups], {"lr": 0.0})
        self._copies: list[tuple[Tensor, nn.Parameter]] = []
        inner: list[dict[str, Any]] = []
        for group in groups:
            copies = [nn.Parameter(_beside(parameter.detach())) for parameter in group["params"]]
            for parameter, copy in zip(group["params"], copies, strict=True):
                copy.grad = _beside(parameter.detach())
                self._copies.append((parameter, copy))
            inner.append({**group, "params": copies})
        self.inner = build(inner, 0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter once from its gradient; waits for the gradients.

        Raises:
            RuntimeError: If a parameter has no gradient.
        """
        for parameter, copy in self._copies:
            if parameter.grad is None or copy.grad is None:
                raise RuntimeError(f"a trained parameter of shape {tuple(parameter.shape)} got no gradient")
            # The parameters as well: whoever has restored or changed them need not know of the copies.
            copy.copy_(parameter, non_blocking=True)
            copy.grad.copy_(parameter.grad, non_blocking=True)
        if self._copies[0][0].device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        for own, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner["lr"] = own["lr"]
        self.inner.step()
        for parameter, copy in self._copies:
            parameter.copy_(copy, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapped optimizer."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state; settings stay as configured."""
        self.inner.load_state_dict({**state_dict, "param_groups": self.inner.state_dict()["param_groups"]})


def _beside(tensor: Tensor) -> Tensor:
    """A copy in RAM, page-locked where a card will fetch it."""
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
    copy.copy_(tensor)
    return copy
