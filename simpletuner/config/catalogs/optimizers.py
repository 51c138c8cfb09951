"""Optimizers: the names of `optimizer`, where each lives, and what it costs in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from simpletuner.core.catalog import Catalog


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer.

    Attributes:
        target: The class; its constructor takes (parameters, lr, betas, eps, weight_decay, **extra).
        parameter_dtype: Number format the trained parameters must have.
        state_bytes: Bytes of optimizer state per trained parameter.
        betas: Default memory of the two moments.
        extra: Further constructor arguments.
        takes_seed: Whether the constructor takes `seed`, because the update draws random numbers.
        help: One sentence for people.
    """

    target: str
    parameter_dtype: Literal["bf16", "fp32"]
    state_bytes: int
    betas: tuple[float, float] = (0.9, 0.999)
    extra: Mapping[str, Any] = field(default_factory=dict)
    takes_seed: bool = False
    help: str = ""

    @property
    def bytes_per_parameter(self) -> int:
        """Bytes each trained parameter needs: itself, its gradient and the optimizer's state."""
        return 2 * (2 if self.parameter_dtype == "bf16" else 4) + self.state_bytes


OPTIMIZERS: Catalog[OptimizerRow] = Catalog(
    "optimizer",
    {
        "adamw_bf16": OptimizerRow(
            "simpletuner.training.optim.adamw_bf16:AdamWBF16",
            parameter_dtype="bf16",
            state_bytes=8,
            takes_seed=True,
            help="AdamW on bfloat16 parameters: float32 moments, updates rounded at random so that none is lost.",
        ),
        "torch-adamw": OptimizerRow(
            "torch.optim:AdamW",
            parameter_dtype="fp32",
            state_bytes=8,
            extra={"fused": True},
            help="PyTorch's AdamW on float32 parameters.",
        ),
    },
)
