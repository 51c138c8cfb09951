"""Trained weights in other forms: a LoRA file in another layout, or merged into a base model.

Each result is read back and compared before it is called done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.core.errors import Problem, UserError
from simpletuner.core.files import retire
from simpletuner.models.adapters.adapter import ADAPTER_FILE
from simpletuner.models.adapters.full import TRANSFORMER_FOLDER, write_transformer
from simpletuner.models.adapters.lora_file import (
    LoraFile,
    largest_difference,
    read_lora_file,
    read_safetensors,
    write_lora_file,
)
from simpletuner.models.adapters.lycoris import merge_lycoris
from simpletuner.models.family import ModelFamily

FAMILY = "ltxvideo"
# Of a layer's largest value: alpha is stored in float32, and B times alpha / r is rounded to it at worst.
CONVERSION_TOLERANCE = 1e-6
# Half a unit in the last place, relative: what storing a value in the format may change.
_ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The file or folder.
        layers: Layers of the LoRA.
        difference: Largest difference found when it was read back, as a share of a layer's largest delta
            (conversion) or of the largest weight of a layer (merge).
        tolerance: What it may be at most.
    """

    path: Path
    layers: int
    difference: float
    tolerance: float


def find_adapter_file(place: Path) -> Path:
    """The LoRA file behind a path: the file itself, or the one in a run folder or checkpoint.

    Raises:
        UserError: If there is none.
    """
    path = place / ADAPTER_FILE if place.is_dir() else place
    if not path.is_file():
        raise UserError(
            f"there is no file '{path}'", "Export wants a LoRA file, a run folder or a checkpoint", "Correct the path"
        )
    return path


def convert_adapter(source: Path, layout: str, output: Path) -> ExportReport:
    """Write the LoRA file `source` in another layout, read the result back and compare every layer.

    Raises:
        UserError: If the file is not understood whole, `output` is taken or cannot be written, or the result differs.
    """
    refuse_taken(output)
    family: ModelFamily = FAMILIES.load(FAMILY)
    file = read_lora_file(source, family)
    write_lora_file(output, file, layout, family)
    difference = largest_difference(file, read_lora_file(output, family))
    if difference > CONVERSION_TOLERANCE:
        output.unlink()
        raise _differs(output, difference, CONVERSION_TOLERANCE)
    return ExportReport(output, len(file.layers), difference, CONVERSION_TOLERANCE)


def merge_adapter(source: Path, base: str, output: Path, number_format: str | None = None) -> ExportReport:
    """Write `output`/transformer: the base's transformer with the adapter (LoRA or LyCORIS) in its weights.

    The changed weights are computed in float32 or better and stored in `number_format` or the base's own. Then the
    folder is read back: changed weights must be base + delta to the rounding of the format, all others the base's
    bit for bit.

    Args:
        base: A checkpoint, a transformer folder, a single file, or a Hub repository.
        number_format: "fp32", "bf16", or None for what the base has.

    Raises:
        UserError: If file and base do not fit, `output` is taken or cannot be written, or the result differs.
    """
    refuse_taken(output / TRANSFORMER_FOLDER)
    family: ModelFamily = FAMILIES.load(FAMILY)
    tensors, metadata = read_safetensors(source)
    wanted = None if number_format is None else _FORMATS[number_format]
    before = family.load_transformer_at(base, None)
    if "lycoris_config" in metadata:
        merged = family.load_transformer_at(base, torch.float32)
        layers = merge_lycoris(merged, tensors, metadata["lycoris_config"], family)
    else:
        file = read_lora_file(source, family)
        _check_layers(file, before, base)
        merged, layers = family.load_transformer_at(base, torch.float32), list(file.layers)
        with torch.no_grad():
            for name, lora in file.layers.items():
                _weight(merged, name).copy_(lora.merged(_weight(before, name)))
    # Some LyCORIS kinds move a layer's bias as well.
    own = dict(merged.named_parameters())
    changed = [key for name in layers for key in (f"{name}.weight", f"{name}.bias") if key in own]
    expected = {key: own[key].detach().clone() for key in changed}
    for parameter in own.values():
        parameter.data = parameter.data.to(wanted or next(before.parameters()).dtype)
    summary = {**metadata, "merged_adapter": source.name, "merged_into": base}
    write_transformer(merged, output / TRANSFORMER_FOLDER, summary)
    tolerance = _ROUNDING[next(merged.parameters()).dtype]
    del merged
    difference = _compare_merged(expected, before, family.load_transformer_at(str(output), None))
    if difference > tolerance:
        retire(output / TRANSFORMER_FOLDER)
        raise _differs(output, difference, tolerance)
    return ExportReport(output / TRANSFORMER_FOLDER, len(layers), difference, tolerance)


def refuse_taken(path: Path) -> None:
    """Nothing of the user's is overwritten.

    Raises:
        UserError: If something is at `path`.
    """
    if path.exists():
        raise UserError(
            f"'{path}' is already there", "Nothing of yours is overwritten", "Choose another place with --output"
        )


def _check_layers(file: LoraFile, transformer: nn.Module, base: str) -> None:
    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    problems = []
    for name, lora in file.layers.items():
        shape = (lora.up.shape[0], lora.down.shape[1])
        if name not in layers or tuple(layers[name].weight.shape) != shape:
            found = f"is {list(layers[name].weight.shape)} there" if name in layers else "is not there"
            problems.append(f"{name} {list(shape)} {found}")
    if problems:
        raise UserError.of([
            Problem(
                f"{len(problems)} of {len(file.layers)} layers of the adapter do not fit '{base}': {problems[0]}",
                "An adapter belongs to the model it was trained on",
                "Name the base of its training with --base",
            )
        ])  # fmt: skip


def _weight(transformer: nn.Module, layer: str) -> Tensor:
    return transformer.get_parameter(f"{layer}.weight")


def _compare_merged(expected: Mapping[str, Tensor], base: nn.Module, merged: nn.Module) -> float:
    """Largest share by which a weight of `merged` is off from what is expected; infinite if any other weight is not
    the base's."""
    largest = 0.0
    for (name, before), after in zip(base.named_parameters(), merged.parameters(), strict=True):
        if name not in expected:
            if not torch.equal(before.to(after.dtype), after):
                return math.inf
            continue
        weight = expected[name]
        size = float(weight.abs().max()) or 1.0
        largest = max(largest, float((after.detach().float() - weight).abs().max()) / size)
    return largest


def _differs(path: Path, difference: float, tolerance: float) -> UserError:
    return UserError(
        f"'{path}' differs from what it was made from by {difference:.1e}; it was removed",
        f"Reading it back must give the same to {tolerance:.1e}",
        "Check that the adapter holds no extreme numbers, and report this with the file's metadata",
    )
