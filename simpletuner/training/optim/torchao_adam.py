"""Adam and AdamW of torchao, whose moments take 8 or 4 bits, on bfloat16 parameters that lose no update.

The library compiles its update at the first step, which takes a compiler and some seconds. Where there is none, or with
`optimizer_config=compiled=false`, the same update runs uncompiled, several times slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torchao.optim
from torch import Tensor

from simpletuner.core.errors import UserError
from simpletuner.runtime.compiler import missing_compiler
from simpletuner.runtime.seeds import stream_seed

_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # moment -> whether it has a sign
_FLOAT8_CAPABILITY = (8, 9)


class _Quantized:
    """Mixed into an optimizer of torchao: rates as numbers, rounding from the run's seed, a state of plain tensors."""

    state: dict[Tensor, dict[str, Any]]
    param_groups: list[dict[str, Any]]

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        compiled: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        """Prepare; moments are made at the first step.

        Args:
            params: bfloat16 parameters of one device.
            lr: Learning rate; the loop sets it before each step.
            betas: Memory of the first and of the second moment, each in [0, 1).
            eps: Added to the root of the second moment.
            weight_decay: Times the learning rate; decoupled for AdamW.
            compiled: Whether to compile the update where that is possible.
            seed: Seed of the random rounding.
        """
        super().__init__(params, lr, betas, eps, weight_decay, bf16_stochastic_round=True)  # type: ignore[call-arg]
        self._seed = seed
        self._steps = 0
        device = self.param_groups[0]["params"][0].device
        self._compiled = compiled and not missing_compiler(device.type) and _device_compiles(device, type(self))

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter once from its gradient.

        Raises:
            UserError: If the update cannot be compiled.
        """
        for group in self.param_groups:
            # A number in a compiled function would be compiled anew for every rate.
            group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32)
        self._steps += 1
        device = self.param_groups[0]["params"][0].device
        stance = contextlib.nullcontext() if self._compiled else torch.compiler.set_stance("force_eager")
        with torch.random.fork_rng([device] if device.type == "cuda" else []), stance:
            torch.manual_seed(stream_seed(self._seed, "rounding", self._steps))
            try:
                loss: float | None = super().step(closure)  # type: ignore[misc]
            except torch._dynamo.exc.TorchDynamoException as error:
                raise UserError(
                    f"the update of the optimizer could not be compiled ({str(error).splitlines()[0]})",
                    "torchao compiles its optimizers at the first step",
                    "Set optimizer_config to compiled=false, or choose adamw_bf16 or bnb-adamw8bit",
                ) from error
        return loss

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        """A moment of zeros; float32 where it is too small to quantize, since bfloat16 would never decay."""
        made: Tensor = super()._new_buffer(p, signed)  # type: ignore[misc]
        return torch.zeros_like(p, dtype=torch.float32) if type(made) is Tensor else made

    def state_dict(self) -> dict[str, Any]:
        """As the base class, with each quantized moment as a mapping of its plain tensors; tables are left out."""
        whole: dict[str, Any] = super().state_dict()  # type: ignore[misc]
        return {**whole, "state": {index: _plain(parts) for index, parts in whole["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state: moments and step counts; rates and betas stay as configured."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parts in state_dict["state"].items():
            parameter = parameters[index]
            own: dict[str, Any] = {"step": torch.tensor(float(parts["step"]))}
            for name, signed in _MOMENTS.items():
                own[name] = moment = self._new_buffer(parameter, signed)
                saved = parts[name]
                for inner, tensor in saved.items() if isinstance(saved, Mapping) else [("", saved)]:
                    (getattr(moment, inner) if inner else moment).copy_(tensor)
            self.state[parameter] = own
            self._steps = int(parts["step"])


def _plain(parts: Mapping[str, Any]) -> dict[str, Any]:
    plain = dict(parts)
    for name in _MOMENTS.keys() & parts.keys():
        if type(parts[name]) is not Tensor:
            inner, _ = parts[name].__tensor_flatten__()
            plain[name] = {key: getattr(parts[name], key) for key in inner if key != "qmap"}
    return plain


def _device_compiles(device: torch.device, kind: type) -> bool:
    """Whether what `kind` computes exists on this card: arithmetic with float8 does not on older ones."""
    if device.type != "cuda" or not issubclass(kind, torchao.optim.AdamFp8 | torchao.optim.AdamWFp8):
        return True
    return torch.cuda.get_device_capability(device) >= _FLOAT8_CAPABILITY


class AdamW8bit(_Quantized, torchao.optim.AdamW8bit):  # type: ignore[misc]
    """AdamW with 8-bit moments."""


class AdamW4bit(_Quantized, torchao.optim.AdamW4bit):  # type: ignore[misc]
    """AdamW with 4-bit moments."""


class AdamFp8(_Quantized, torchao.optim.AdamFp8):  # type: ignore[misc]
    """Adam with float8 moments."""


class AdamWFp8(_Quantized, torchao.optim.AdamWFp8):  # type: ignore[misc]
    """AdamW with float8 moments."""
