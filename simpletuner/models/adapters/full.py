"""Training the transformer itself: all of its weights, saved as a `transformer` folder that Diffusers loads.

Knows any Diffusers model. There is no base model beside what is trained, so what the base would have done can be
seen only before the first step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save as serialize
from torch import Tensor, nn

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.core.errors import UserError
from simpletuner.core.files import staged_folder, write_json_atomic
from simpletuner.models.adapters import weights_file
from simpletuner.models.adapters.lora_file import read_tensors
from simpletuner.models.family import ModelFamily

TRANSFORMER_FOLDER = weights_file.TRANSFORMER_FOLDER
SUMMARY_NAME = "training_summary.json"
SHARD_SIZE = "5GB"
_SHARDS = "diffusion_pytorch_model{suffix}.safetensors"
_INDEX = "diffusion_pytorch_model.safetensors.index.json"


def build_full(
    transformer: nn.Module,
    family: ModelFamily,
    settings: AdapterSection,
    lycoris: LycorisFile | None,
    dtype: torch.dtype,
    seed: int,
) -> FullWeights:
    """Make every weight of the transformer trainable.

    Raises:
        UserError: If weights have another number format than the optimizer trains.
    """
    return FullWeights(transformer, dtype)


class FullWeights:
    """All weights of a transformer; fulfils `adapter.Adapter`."""

    weights_name = TRANSFORMER_FOLDER
    keeps_base = False
    layers: tuple[str, ...] = ()
    file_is_exact = True

    def __init__(self, transformer: nn.Module, dtype: torch.dtype) -> None:
        """Unfreeze the transformer; `dtype` is the number format that the optimizer trains."""
        others = sorted({str(p.dtype) for p in transformer.parameters() if p.dtype != dtype})
        if others:
            raise UserError(
                f"model_type full: the model's weights are {', '.join(others)}, the optimizer trains {dtype}",
                "The model is computed in the format its weights are trained in",
                "Use adamw_bf16 with mixed_precision bf16, or a float32 optimizer with mixed_precision no",
            )
        self._transformer = transformer.requires_grad_(True)
        self.undecayed = _undecayed(transformer)

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"model_type": "full"}

    def describe(self) -> str:
        decayed = len(self.parameters()) - len(self.undecayed)
        return f"all weights: {decayed} matrices, and {len(self.undecayed)} scales, shifts and tables without decay"

    def parameters(self) -> dict[str, nn.Parameter]:
        named = dict(self._transformer.named_parameters())
        matrices = {name: parameter for name, parameter in named.items() if name not in self.undecayed}
        return {**matrices, **{name: named[name] for name in named if name in self.undecayed}}

    def move(self, device: torch.device) -> None:
        """Nothing: all of it is part of the transformer."""

    def load_file_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        own = self.parameters()
        differing = sorted(
            name
            for name in {*own, *tensors}
            if name not in own or name not in tensors or own[name].shape != tensors[name].shape
        )
        if differing:
            raise UserError(
                f"{len(differing)} weights of the saved transformer are missing, left over or of another shape, such "
                f"as {', '.join(differing[:3])}",
                "A run continues only with the transformer it was made with",
                "Use the checkpoint of the same model",
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    def load_start(self, path: Path, family: ModelFamily) -> None:
        self.load_file_tensors(read_tensors(path))

    def save(self, path: Path, metadata: Mapping[str, str], values: Mapping[str, Tensor] | None = None) -> None:
        write_transformer(self._transformer, path, metadata, values)

    def disabled(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def shown(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def measured(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


def write_transformer(
    transformer: nn.Module, folder: Path, metadata: Mapping[str, str], values: Mapping[str, Tensor] | None = None
) -> None:
    """Write a Diffusers model as a folder of safetensors files with its configuration, all or nothing.

    The layout is that of the library's own `save_pretrained`, which can write only what the model holds.

    Args:
        metadata: Texts that go into `training_summary.json` beside the weights.
        values: What is written in place of the model's own tensors, by their names.

    Raises:
        UserError: If the disk is full or the folder cannot be written.
    """
    model: Any = transformer
    tensors = {**transformer.state_dict(), **(values or {})}
    shards = split_torch_state_dict_into_shards(tensors, filename_pattern=_SHARDS, max_shard_size=SHARD_SIZE)
    with staged_folder(folder) as staging:
        model.save_config(staging)
        for name, held in shards.filename_to_tensors.items():
            shard = {key: tensors[key].detach().to("cpu").contiguous() for key in held}
            # Written by Python, not by the library: its own errors are no OSError and would hide a full disk.
            (staging / name).write_bytes(serialize(shard, metadata={"format": "pt"}))
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            write_json_atomic(staging / _INDEX, index)
        write_json_atomic(staging / SUMMARY_NAME, dict(metadata))


def _undecayed(transformer: nn.Module) -> frozenset[str]:
    """Everything but the matrices of linear layers: pulling a scale, a bias or a modulation table towards zero
    changes what the model computes instead of keeping it small."""
    matrices = {f"{name}.weight" for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    return frozenset(name for name, _ in transformer.named_parameters() if name not in matrices)
