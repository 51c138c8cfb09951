"""Small modules that objectives train beside the model, such as CREPA's projector.

They are no part of what is trained for use: float32 whatever the adapter has, an AdamW of their own, and a file of
their own in each checkpoint, so that every kind of adapter and optimizer goes with them and no adapter file holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from simpletuner.core.errors import UserError

MOMENTS: Final = ("exp_avg", "exp_avg_sq", "step")


class Companions:
    """All companions of a run and what trains them."""

    def __init__(self, modules: Mapping[str, nn.Module], learning_rate: float) -> None:
        """
        Args:
            modules: Objective -> its module, float32, on the computing device.
            learning_rate: Rate of their AdamW, the same at every step.
        """
        self._modules = nn.ModuleDict(dict(modules))
        self._named = dict(self._modules.named_parameters())
        self._optimizer = torch.optim.AdamW(self._named.values(), lr=learning_rate, weight_decay=0.0)

    @property
    def trained_count(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self._named.values())

    def step(self) -> None:
        """Move what got a gradient, and drop the gradients."""
        self._optimizer.step()
        self.drop_gradients()

    def mask_gradients(self, broken: Tensor) -> None:
        """Set gradients to 0 where `broken` [] bool says so; the host does not look."""
        for parameter in self._named.values():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(broken, 0.0)

    def drop_gradients(self) -> None:
        """Forget what has added up."""
        self._optimizer.zero_grad(set_to_none=True)

    def tensors(self, copy: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Everything the next step depends on by name, each through `copy`."""
        found = {f"module.{name}": copy(tensor) for name, tensor in self._modules.state_dict().items()}
        for name, parameter in self._named.items():
            state = self._optimizer.state[parameter]
            found |= {f"optimizer.{name}.{part}": copy(state[part]) for part in MOMENTS if part in state}
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave, exactly.

        Raises:
            UserError: If names or shapes differ; nothing is changed then.
        """
        own = self._modules.state_dict()
        given = {name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")}
        if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in given.items()}:
            raise UserError(
                f"the checkpoint's companions ({', '.join(sorted(given)) or 'none'}) are not those of this run",
                "A projector continues only with the same block, encoder and kind of objective",
                "Set the options of the objective back, or start over in another output_dir",
            )
        self._modules.load_state_dict(given)
        for name, parameter in self._named.items():
            parts = {part: tensors.get(f"optimizer.{name}.{part}") for part in MOMENTS}
            if parts["step"] is None:
                self._optimizer.state.pop(parameter, None)
                continue
            self._optimizer.state[parameter] = {
                # The count stays where PyTorch keeps it, on the CPU; the moments lie beside the parameter.
                part: tensor.clone() if part == "step" else tensor.to(parameter.device, copy=True)
                for part, tensor in parts.items()
                if tensor is not None
            }
