"""An optimizer's state as named tensors and plain numbers, and back; no pickle anywhere.

Works for every optimizer that follows torch's protocol. Rates, betas and the like are not part of
it: they belong to the configuration of the run that continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Numbers = dict[str, dict[str, float]]


def split_state(optimizer: Optimizer, names: Sequence[str]) -> tuple[dict[str, Tensor], Numbers]:
    """Take the state apart.

    Args:
        optimizer: The optimizer.
        names: Names of its parameters, in its order.

    Returns:
        Copies of the tensors on the CPU under "<part>.<parameter name>", in their own number format,
        and the plain numbers under parameter name and part.

    Raises:
        TypeError: If the state holds anything but tensors and numbers.
    """
    tensors: dict[str, Tensor] = {}
    numbers: Numbers = {}
    for index, parts in optimizer.state_dict()["state"].items():
        name = names[index]
        for part, value in parts.items():
            if isinstance(value, Tensor):
                tensors[f"{part}.{name}"] = value.detach().to("cpu", copy=True).contiguous()
            elif isinstance(value, int | float):
                numbers.setdefault(name, {})[part] = value
            else:
                raise TypeError(f"optimizer state '{part}' of '{name}' is a {type(value).__name__}")
    return tensors, numbers


def join_state(
    optimizer: Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Put a state that `split_state` took apart into a fresh optimizer over the same parameters.

    Raises:
        KeyError: If a parameter has no saved state.
    """
    state: dict[int, dict[str, Any]] = {index: dict(numbers.get(name, {})) for index, name in enumerate(names)}
    indices = {name: index for index, name in enumerate(names)}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        state[indices[name]][part] = tensor
    empty = [names[index] for index, parts in state.items() if not parts]
    if empty:
        raise KeyError(f"no optimizer state saved for {empty[0]}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def find_broken(tensors: Mapping[str, Tensor]) -> str:
    """Name of the first tensor that holds a NaN or an infinity; empty when all are finite."""
    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), "")
