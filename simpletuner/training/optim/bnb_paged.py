"""Paged optimizers of bitsandbytes that stay paged after a resume, and that run on a CPU.

The library puts a loaded state on the card whole, where it may not fit: here it goes back into pages.
On a CPU nothing is paged; the states lie in RAM already.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes.optim as bnb
import torch
from torch import Tensor


class _Paged:
    """Mixed into an optimizer of bitsandbytes."""

    state: dict[Tensor, dict[str, Any]]
    param_groups: list[dict[str, Any]]

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Continue from a saved state, in buffers of the kind that the first step would have made."""
        super().load_state_dict(state_dict, move_to_device=False)  # type: ignore[misc]
        for group_index, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                loaded = self.state.pop(parameter)
                self.state[parameter] = {}
                self.init_state(group, parameter, group_index, index)  # type: ignore[attr-defined]
                own = self.state[parameter]
                for key, value in loaded.items():
                    if isinstance(value, Tensor):
                        own[key].copy_(value)
                    else:
                        own[key] = value


class PagedAdam(_Paged, bnb.PagedAdam):  # type: ignore[misc]
    """Adam."""


class PagedAdam8bit(_Paged, bnb.PagedAdam8bit):  # type: ignore[misc]
    """Adam with 8-bit moments."""


class PagedAdamW(_Paged, bnb.PagedAdamW):  # type: ignore[misc]
    """AdamW."""


class PagedAdamW8bit(_Paged, bnb.PagedAdamW8bit):  # type: ignore[misc]
    """AdamW with 8-bit moments."""


class PagedLion(_Paged, bnb.PagedLion):  # type: ignore[misc]
    """Lion."""


class PagedLion8bit(_Paged, bnb.PagedLion8bit):  # type: ignore[misc]
    """Lion with an 8-bit moment."""


class _Double(_Paged):
    """AdEMAMix keeps two first moments in one buffer, for which the library knows no CPU."""

    def _get_state_double_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        if p.device.type == "cpu":
            return torch.zeros((2, *p.shape), dtype=dtype)
        made: Tensor = super()._get_state_double_buffer(p, dtype=dtype)  # type: ignore[misc]
        return made


class PagedAdEMAMix(_Double, bnb.PagedAdEMAMix):  # type: ignore[misc]
    """AdEMAMix."""


class PagedAdEMAMix8bit(_Double, bnb.PagedAdEMAMix8bit):  # type: ignore[misc]
    """AdEMAMix with 8-bit moments."""
