"""From a base checkpoint to something that can be trained: transformer, adapter, number formats.

Knows families only by their protocol. The walk goes on in `training/state.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

import torch
from torch import Tensor, nn

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.core.errors import UserError
from simpletuner.models.adapters.lora import (
    adapter_config,
    adapter_disabled,
    adapter_parameters,
    adapter_tensors,
    attach_lora,
    load_adapter_tensors,
)
from simpletuner.models.family import ModelFamily, Source

_WEIGHT_DTYPES: Final = {"no": torch.float32, "bf16": torch.bfloat16}
_PARAMETER_DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32}


class BuildSettings(Protocol):
    """The sections of the configuration that shape a trainable model."""

    @property
    def adapter(self) -> AdapterSection: ...
    @property
    def precision(self) -> PrecisionSection: ...
    @property
    def memory(self) -> MemorySection: ...
    @property
    def optimizer(self) -> OptimizerSection: ...
    @property
    def schedule(self) -> ScheduleSection: ...


class _Checkpointing(Protocol):
    def enable_gradient_checkpointing(self) -> None: ...


@dataclass(frozen=True)
class Trainable:
    """A frozen transformer with an adapter that is trained.

    Attributes:
        transformer: The base model with the adapter attached, on `device`.
        family: How to call it.
        parameters: The trained parameters by name, in the fixed order the optimizer sees.
        device: Where the model is computed.
        dtype: Number format of the frozen weights and of the model's inputs.
        draws_dropout: Whether the forward pass draws from torch's global generator.
        facts: What a checkpoint compares: rank, alpha, targets, number format.
    """

    transformer: nn.Module
    family: ModelFamily
    parameters: Mapping[str, nn.Parameter]
    device: torch.device
    dtype: torch.dtype
    draws_dropout: bool
    facts: Mapping[str, Any]

    @property
    def trained_count(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def total_count(self) -> int:
        """Number of all values, frozen and trained."""
        return sum(parameter.numel() for parameter in self.transformer.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the trained tensors on the CPU, in their own number format."""
        return adapter_tensors(self.transformer)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put saved tensors in the place of the trained ones.

        Raises:
            UserError: If names or shapes differ.
        """
        load_adapter_tensors(self.transformer, dict(tensors))

    def save_weights(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the adapter as one file that the family's diffusers pipeline loads as it is."""
        self.family.save_adapter(path, self.tensors(), adapter_config(self.transformer), dict(metadata))

    def plain_weights(self) -> AbstractContextManager[None]:
        """While open, the transformer computes as if it had no adapter."""
        return cast(AbstractContextManager[None], adapter_disabled(self.transformer))


def build_trainable(family: ModelFamily, source: Source, config: BuildSettings, device: torch.device) -> Trainable:
    """Load the transformer, freeze it, attach the adapter in the optimizer's number format.

    Raises:
        UserError: If a target matches no layer, or the number format cannot be trained.
    """
    adapter = config.adapter
    dtype = weight_dtype(config.precision)
    transformer = family.load_transformer(source, dtype, device)
    transformer.requires_grad_(False)
    targets = family.adapter_targets(transformer, adapter.peft_lora_target_modules or adapter.lora_targets)
    parameter_dtype = _PARAMETER_DTYPES[OPTIMIZERS[config.optimizer.optimizer].parameter_dtype]
    attach_lora(transformer, targets, adapter, parameter_dtype, config.schedule.seed)
    if config.memory.gradient_checkpointing:
        cast(_Checkpointing, transformer).enable_gradient_checkpointing()
    transformer.train()
    return Trainable(
        transformer=transformer,
        family=family,
        parameters=adapter_parameters(transformer),
        device=device,
        dtype=dtype,
        draws_dropout=adapter.lora_dropout > 0,
        facts={**_adapter_facts(adapter, targets), "mixed_precision": config.precision.mixed_precision},
    )


def weight_dtype(precision: PrecisionSection) -> torch.dtype:
    """Number format of the frozen weights.

    Raises:
        UserError: If training in this format is not built.
    """
    if precision.mixed_precision not in _WEIGHT_DTYPES:
        raise UserError(
            f"mixed_precision '{precision.mixed_precision}' cannot be trained",
            "LTX-Video overflows in fp16, and fp8 arithmetic is not built",
            "Use 'bf16', or 'no' for float32",
        )
    return _WEIGHT_DTYPES[precision.mixed_precision]


def _adapter_facts(adapter: AdapterSection, targets: list[str]) -> dict[str, Any]:
    alpha = adapter.lora_rank if adapter.lora_alpha is None else adapter.lora_alpha
    return {
        "lora_type": adapter.lora_type,
        "lora_rank": adapter.lora_rank,
        "lora_alpha": float(alpha),
        "lora_targets": sorted(targets),
    }
