"""Updating each parameter in the middle of the backward pass, so that gradients never lie in memory together.

As soon as a parameter's gradient is complete it is limited, the parameter moves, and the gradient is dropped. That is
the same update as afterwards for every optimizer that looks at one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from simpletuner.runtime.regions import UPDATE, region

# Groups of parameters, running number of the first of them -> an optimizer for them.
Build = Callable[[list[dict[str, Any]], int], Optimizer]


class ReleasedOptimizer(Optimizer):
    """One optimizer for each parameter, run by the backward pass; `step` only does what that has left out."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], build: Build, clip_value: float, group_state: Sequence[str] = ()
    ) -> None:
        """Listen for the gradients.

        Args:
            groups: Parameters and the settings they differ in.
            build: Makes the optimizer of one parameter.
            clip_value: Largest size of an element of a gradient; 0 leaves gradients as they are.
            group_state: What the optimizers keep in their group of parameters; part of their state here.
        """
        super().__init__([dict(group) for group in groups], {"lr": 0.0})
        self._clip_value = clip_value
        self._group_state = tuple(group_state)
        self._moved: dict[Tensor, Tensor] = {}  # parameter -> L2 norm of its gradient before clipping
        self._parts: dict[Tensor, Optimizer] = {}
        self._listening: list[Any] = []
        for group in groups:
            for parameter in group["params"]:
                self._parts[parameter] = build([{**group, "params": [parameter]}], len(self._parts))
                self._listening.append(parameter.register_post_accumulate_grad_hook(self._move))

    def close(self) -> None:
        """Listen no more; the parameters stay as they are."""
        for handle in self._listening:
            handle.remove()

    @property
    def rate(self) -> float:
        """Learning rate of the updates to come."""
        return float(self.param_groups[0]["lr"])

    def _move(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        with torch.no_grad(), region(UPDATE):
            self._moved[parameter] = norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
            # A broken gradient must not reach the weights, and nobody waits to know.
            gradient.masked_fill_(~torch.isfinite(norm), 0.0)
            if self._clip_value:
                gradient.clamp_(-self._clip_value, self._clip_value)
            part = self._parts[parameter]
            for group in part.param_groups:
                group["lr"] = self.rate
            part.step()
        parameter.grad = None

    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the gradients since the last `step`, float32 on the device, before clipping.

        A parameter that the backward pass did not reach is moved now, with a gradient of zero, so that every state
        counts the same steps.
        """
        for parameter in self._parts:
            if parameter not in self._moved:
                parameter.grad = torch.zeros_like(parameter)
                self._move(parameter)
        total: Tensor = torch.linalg.vector_norm(torch.stack(list(self._moved.values())))
        return total

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients are gone already; the next backward pass begins a new step."""
        self._moved.clear()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Everything has moved already."""

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts under the numbers of their parameters; what they keep in groups lies within."""
        state: dict[int, dict[str, Any]] = {}
        for number, part in enumerate(self._parts.values()):
            group = part.param_groups[0]
            kept = {key: group[key] for key in self._group_state if key in group}
            state[number] = {**part.state_dict()["state"].get(0, {}), **({"group": kept} if kept else {})}
        whole: dict[str, Any] = super().state_dict()
        return {**whole, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state; settings stay as configured."""
        for number, part in enumerate(self._parts.values()):
            parts = dict(state_dict["state"][number])
            group = parts.pop("group", {})
            part.load_state_dict({"state": {0: parts}, "param_groups": part.state_dict()["param_groups"]})
            part.param_groups[0].update(group)
