"""PEFT LoRA: attach to a transformer, read and write its tensors, switch it off for a moment.

Knows any transformer with Diffusers' PEFT mixin; which layers get an adapter is the family's
business. Only the adapter is trainable afterwards.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.core.errors import Problem, UserError
from simpletuner.runtime.random import stream_generator

ADAPTER = "default"


def attach_lora(
    transformer: nn.Module, targets: Sequence[str], settings: AdapterSection, dtype: torch.dtype, seed: int
) -> None:
    """Add a LoRA to the layers `targets`, freeze everything else, and start it from `seed` alone.

    The output of the model is unchanged at first: B starts at zero.

    Args:
        transformer: Diffusers transformer without an adapter.
        targets: Full names of its linear layers.
        settings: Rank, alpha (absent: equal to the rank), dropout and initialisation.
        dtype: Format of the adapter's weights, whatever the base has.
        seed: Keys the start values of A; the global random state is left alone.
    """
    peft_model: Any = transformer.requires_grad_(False)
    alpha = settings.lora_rank if settings.lora_alpha is None else settings.lora_alpha
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(targets),
        init_lora_weights=False,
    )
    with torch.random.fork_rng(devices=[]):
        peft_model.add_adapter(config, adapter_name=ADAPTER)
    # PEFT shortens long lists to name endings; files and messages shall keep the exact layers.
    config.target_modules = set(targets)
    gaussian = settings.lora_init_type == "gaussian"
    for name, layer in _lora_layers(transformer).items():
        for matrix in (layer.lora_A, layer.lora_B):
            matrix[ADAPTER].to(dtype)
        _start(layer.lora_A[ADAPTER].weight, stream_generator(seed, f"lora.{name}", 0), gaussian)
        nn.init.zeros_(layer.lora_B[ADAPTER].weight)


def adapter_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's trainable tensors by file name (`proj_in.lora_A.weight`), in module order."""
    parameters = {}
    for name, layer in _lora_layers(transformer).items():
        parameters[f"{name}.lora_A.weight"] = layer.lora_A[ADAPTER].weight
        parameters[f"{name}.lora_B.weight"] = layer.lora_B[ADAPTER].weight
    return parameters


def adapter_tensors(transformer: nn.Module) -> dict[str, Tensor]:
    """Contiguous copies of the adapter's tensors on the CPU, in their own format."""
    return {
        name: parameter.detach().to("cpu", copy=True).contiguous()
        for name, parameter in adapter_parameters(transformer).items()
    }


def load_adapter_tensors(transformer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put saved tensors into the attached adapter, exactly; nothing is changed if anything does not fit.

    Raises:
        UserError: Listing tensors that are missing, left over, or of another shape (another rank).
    """
    parameters = adapter_parameters(transformer)
    problems = _differences(parameters, tensors)
    if problems:
        raise UserError.of(problems)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def adapter_config(transformer: nn.Module) -> dict[str, Any]:
    """What a loader must know besides the tensors, ready for JSON: PEFT's `LoraConfig` fields.

    Only fields that mean something are given, so that other versions of PEFT read them as well.
    """
    peft_model: Any = transformer
    config = peft_model.peft_config[ADAPTER]
    return {
        "peft_type": "LORA",
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": sorted(config.target_modules),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }


@contextlib.contextmanager
def adapter_disabled(transformer: nn.Module) -> Iterator[None]:
    """The base model alone for the length of the block; a model without adapter stays as it is."""
    layers = _lora_layers(transformer)
    flags = {name: parameter.requires_grad for name, parameter in transformer.named_parameters()} if layers else {}
    for layer in layers.values():
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.enable_adapters(True)
        for name, parameter in transformer.named_parameters() if layers else ():
            parameter.requires_grad_(flags[name])


def _lora_layers(transformer: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}


def _start(weight: Tensor, generator: torch.Generator, gaussian: bool) -> None:
    """Start values of A [r, in], drawn in float32 on the CPU so that device and format do not matter."""
    lora_rank, width = weight.shape
    if gaussian:
        values = torch.randn(lora_rank, width, generator=generator) / lora_rank
    else:
        # Kaiming with a = sqrt(5), PEFT's default: uniform within 1 / sqrt(in).
        values = (torch.rand(lora_rank, width, generator=generator) * 2 - 1) / math.sqrt(width)
    with torch.no_grad():
        weight.copy_(values)


def _differences(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[Problem]:
    missing = [name for name in wanted if name not in given]
    left_over = [name for name in given if name not in wanted]
    shapes = [
        f"{name} is {list(given[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    rules = {
        "missing": (
            missing,
            "The saved adapter must cover the same layers",
            "Use the same lora_targets as in the saved run",
        ),
        "left over": (
            left_over,
            "The saved adapter must cover the same layers",
            "Use the same lora_targets as in the saved run",
        ),
        "of another shape": (
            shapes,
            "Rank and model must be those of the saved run",
            "Use the same lora_rank and checkpoint",
        ),
    }
    return [
        Problem(f"{len(names)} adapter tensors are {what}, such as {', '.join(names[:3])}", rule, fix)
        for what, (names, rule, fix) in rules.items()
        if names
    ]
