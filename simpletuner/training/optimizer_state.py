"""An optimizer's state as named tensors and plain numbers, and back; no pickle anywhere.

Works for every optimizer that follows torch's protocol. Rates, betas and the like are not part of
it: they belong to the configuration of the run that continues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from simpletuner.training.host_copies import host_copy

Numbers = dict[str, dict[str, float]]
GROUP = ""  # the name under which numbers of the group of parameters are kept


def split_state(
    optimizer: Optimizer,
    names: Sequence[str],
    group_state: Sequence[str] = (),
    copy: Callable[[Tensor], Tensor] = host_copy,
) -> tuple[dict[str, Tensor], Numbers]:
    """Take the state apart.

    Args:
        optimizer: The optimizer; its groups of parameters count alike.
        names: Names of its parameters, in its order, group after group.
        group_state: What the optimizer keeps beside the settings of its group, such as a step count.
        copy: How a tensor gets to the host.

    Returns:
        Copies of the tensors on the CPU under "<part>.<parameter name>" ("<part>/<inner part>" for a nested
        part), in their own number format; and the plain numbers under parameter name and part, those of the
        group under the empty name.

    Raises:
        TypeError: If the state holds anything but tensors and numbers.
    """
    tensors: dict[str, Tensor] = {}
    numbers: Numbers = {}
    for index, parts in optimizer.state_dict()["state"].items():
        name = names[index]
        for part, value in _flat(parts).items():
            if isinstance(value, Tensor):
                tensors[f"{part}.{name}"] = copy(value)
            elif isinstance(value, int | float):
                numbers.setdefault(name, {})[part] = value
            elif value is not None:
                raise TypeError(f"optimizer state '{part}' of '{name}' is a {type(value).__name__}")
    group = optimizer.param_groups[0]
    for key in group_state:
        if isinstance(group.get(key), Tensor):
            tensors[f"{key}.{GROUP}"] = copy(group[key])
        elif key in group:
            numbers.setdefault(GROUP, {})[key] = group[key]
    return tensors, numbers


def _flat(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of a parameter's state; those inside a nested part are named "<part>/<inner part>"."""
    flat: dict[str, Any] = {}
    for part, value in parts.items():
        if isinstance(value, Mapping):
            flat.update({f"{part}/{inner}": kept for inner, kept in value.items()})
        else:
            flat[part] = value
    return flat


def join_state(
    optimizer: Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Put a state that `split_state` took apart into a fresh optimizer over the same parameters.

    Raises:
        KeyError: If some parameters have saved state and one has none.
    """
    state: dict[int, dict[str, Any]] = {index: {} for index in range(len(names))}
    indices = {name: index for index, name in enumerate(names)}
    for name, parts in numbers.items():
        if name != GROUP:
            for part, value in parts.items():
                _put(state[indices[name]], part, value)
    of_group: dict[str, Any] = dict(numbers.get(GROUP, {}))
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if name == GROUP:
            of_group[part] = tensor
        else:
            _put(state[indices[name]], part, tensor)
    empty = [names[index] for index, parts in state.items() if not parts]
    if empty and len(empty) < len(names):
        raise KeyError(f"no optimizer state saved for {empty[0]}")
    if not empty:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group in optimizer.param_groups:
        # A copy for each: groups that shared one counter would all count in it.
        group.update(deepcopy(of_group))


def _put(parts: dict[str, Any], part: str, value: Any) -> None:
    outer, nested, inner = part.partition("/")
    if nested:
        parts.setdefault(outer, {})[inner] = value
    else:
        parts[part] = value


def find_broken(tensors: Mapping[str, Tensor]) -> str:
    """Name of the first tensor that holds a NaN or an infinity; empty when all are finite."""
    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), "")
