"""Parameters in flat buckets, so that an update is a handful of operations per bucket, not per parameter.

A bucket is a run of neighbouring parameters of one group. What the optimizer remembers of them lies in
flat tensors; the state of each parameter is a view of those. Parameters and gradients stay where they are and are
gathered for the length of an update.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from simpletuner.core.errors import UserError

# Bounds the float32 copies made while a bucket is updated (16 MiB each) for models of any size. The
# division into buckets decides which random bits a parameter gets: changing this number changes runs.
BUCKET_ELEMENTS = 4 * 1024 * 1024


@dataclass(frozen=True)
class Bucket:
    """Neighbouring parameters of one group that are updated together.

    Attributes:
        index: Running number, part of the key of random bits.
        group: The optimizer's group of parameters; its settings count.
        parameters: In the order of the group.
        states: What is remembered by name, [N] each.
    """

    index: int
    group: dict[str, Any]
    parameters: list[Tensor]
    states: Mapping[str, Tensor]

    def values(self) -> Tensor:
        """The parameters as new float32 values [N]."""
        return self._gather(self.parameters)

    def gradients(self, wide: Mapping[Tensor, Tensor]) -> Tensor:
        """Their gradients as new float32 values [N]; those in `wide` stand in for the parameters' own.

        Raises:
            RuntimeError: If a parameter has no gradient.
        """
        return self._gather(gradients_of(self.parameters, wide))

    def put(self, values: Tensor) -> None:
        """Set the parameters to `values` [N], rounded to the nearest where they do not fit."""
        torch._foreach_copy_(self.parameters, self.views(values))

    def _gather(self, tensors: list[Tensor]) -> Tensor:
        first = self.parameters[0]
        total = sum(parameter.numel() for parameter in self.parameters)
        flat = torch.empty(total, dtype=torch.float32, device=first.device)
        torch._foreach_copy_(self.views(flat), tensors)
        return flat

    def views(self, flat: Tensor) -> list[Tensor]:
        """Parts of a flat tensor [N] in the shapes of the parameters."""
        sizes = [parameter.numel() for parameter in self.parameters]
        return [part.view_as(p) for part, p in zip(flat.split(sizes), self.parameters, strict=True)]


class BucketOptimizer(Optimizer):
    """What optimizers on buckets of bfloat16 parameters share; `_update` is theirs.

    Attributes:
        gradients: float32 gradients that stand in for `.grad`, which cannot be wider than its parameter; taken in by
            the next step and forgotten.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        """Take the parameters; the buckets are made by `make_buckets`."""
        super().__init__(params, defaults)
        self.gradients: dict[Tensor, Tensor] = {}
        self.buckets: list[Bucket] = []

    def make_buckets(
        self, name: str, states: Mapping[str, torch.dtype], takes: Callable[[Tensor], bool] = lambda parameter: True
    ) -> None:
        """Divide parameters into buckets and give each its state: the named tensors, all zero, and step 0.

        Args:
            name: What users call the optimizer.
            states: What is remembered, and in which number format.
            takes: Which parameters to take.

        Raises:
            UserError: If a parameter is not bfloat16.
        """
        for group in self.param_groups:
            _refuse_other_formats(name, group["params"])
            for parameters in divide([parameter for parameter in group["params"] if takes(parameter)]):
                total = sum(parameter.numel() for parameter in parameters)
                device = parameters[0].device
                flat = {key: torch.zeros(total, dtype=dtype, device=device) for key, dtype in states.items()}
                bucket = Bucket(len(self.buckets), group, parameters, flat)
                for parameter in parameters:
                    self.state[parameter]["step"] = 0
                for key, values in flat.items():
                    for parameter, view in zip(parameters, bucket.views(values), strict=True):
                        self.state[parameter][key] = view
                self.buckets.append(bucket)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter once from its gradient; nothing waits for the device.

        Raises:
            RuntimeError: If a parameter has no gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for bucket in self.buckets:
            number = int(self.state[bucket.parameters[0]]["step"]) + 1
            for parameter in bucket.parameters:
                self.state[parameter]["step"] = number
            self._update(bucket, number)
        self.gradients.clear()
        return loss

    @abstractmethod
    def _update(self, bucket: Bucket, number: int) -> None:
        """Update the parameters and states of a bucket at step `number`, from 1."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state: what is remembered and the step counts; settings stay as configured.

        The base class would cast everything to the parameters' bfloat16 and break the buckets up.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in enumerate(parameters):
            saved, own = state_dict["state"][number], self.state[parameter]
            for key, value in own.items():
                if isinstance(value, Tensor):
                    value.copy_(saved[key])
                else:
                    own[key] = type(value)(saved[key])


def divide(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Cut the list into runs of at most `BUCKET_ELEMENTS` elements; a larger parameter stays alone."""
    runs: list[list[Tensor]] = []
    held = BUCKET_ELEMENTS
    for parameter in parameters:
        if held + parameter.numel() > BUCKET_ELEMENTS:
            runs.append([])
            held = 0
        runs[-1].append(parameter)
        held += parameter.numel()
    return runs


def gradients_of(parameters: Sequence[Tensor], wide: Mapping[Tensor, Tensor] | None = None) -> list[Tensor]:
    """The gradients of the parameters; those in `wide` stand in for the parameters' own.

    Raises:
        RuntimeError: If one has none.
    """
    gradients = [(wide or {}).get(parameter, parameter.grad) for parameter in parameters]
    present = [gradient for gradient in gradients if gradient is not None]
    if len(present) < len(gradients):
        missing = next(p for p, gradient in zip(parameters, gradients, strict=True) if gradient is None)
        raise RuntimeError(f"a trained parameter of shape {tuple(missing.shape)} got no gradient")
    return present


def _refuse_other_formats(name: str, parameters: Sequence[Tensor]) -> None:
    for parameter in parameters:
        if parameter.dtype != torch.bfloat16:
            raise UserError(
                f"optimizer {name} was given parameters in {str(parameter.dtype).removeprefix('torch.')}",
                "It trains bfloat16 parameters only",
                "Choose the optimizer torch-adamw for float32 parameters",
            )
