"""SOAP of the package `pytorch_optimizer`, with a state that is tensors and numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytorch_optimizer
from torch import Tensor

_LISTS: Final = ("GG", "Q")  # statistics and eigenvectors, one for each side of a matrix


class Soap(pytorch_optimizer.SOAP):  # type: ignore[misc]
    """Adam in the eigenvectors of Shampoo's statistics (Vyas et al. 2024, arXiv 2409.11321).

    The first step only fills the statistics and moves nothing, as in the paper. A side longer than
    `max_precondition_dim` is left as it is (one-sided SOAP).
    """

    def update_pre_conditioner(self, grad: Tensor, state: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As the base class, with eigenvectors in the order of memory in which a checkpoint gives them back.

        Products of matrices in another order round otherwise.
        """
        super().update_pre_conditioner(grad, state, *args, **kwargs)
        state["Q"] = [side.contiguous() if isinstance(side, Tensor) else side for side in state["Q"]]

    def state_dict(self) -> dict[str, Any]:
        """As the base class, but each list as a mapping from the place to its tensor; sides left as they are lack."""
        whole: dict[str, Any] = super().state_dict()
        return {**whole, "state": {index: _as_mappings(parts) for index, parts in whole["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state; settings stay as configured."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        settings = {id(p): group for group in self.param_groups for p in group["params"]}
        state = {
            index: _as_lists(parts, parameters[index], settings[id(parameters[index])])
            for index, parts in state_dict["state"].items()
        }
        super().load_state_dict({**state_dict, "state": state})


def _as_mappings(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one parameter with mappings for lists, without what its group knows."""
    kept = {key: parts[key] for key in ("exp_avg", "exp_avg_sq") if key in parts}
    for key in _LISTS:
        sides = parts.get(key) or []
        kept[key] = {str(place): side for place, side in enumerate(sides) if isinstance(side, Tensor)}
    return kept


def _as_lists(parts: Mapping[str, Any], parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """What `_as_mappings` gave, as the base class keeps it."""
    lists = {key: [parts.get(key, {}).get(str(place), []) for place in range(parameter.ndim)] for key in _LISTS}
    shampoo = group["shampoo_beta"]
    return {
        **parts,
        **lists,
        "precondition_frequency": group["precondition_frequency"],
        "shampoo_beta": group["betas"][1] if shampoo is None else shampoo,
    }
