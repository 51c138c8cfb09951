"""Trained weights in other forms: an adapter under the names of another program, or merged into a base model, and a
whole transformer as one file.

Each result is read back and compared before it is called done.
"""

from __future__ import annotations

import shutil
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
    largest_share,
    read_lora_file,
    write_lora_file,
)
from simpletuner.models.adapters.lycoris import merge_lycoris
from simpletuner.models.adapters.lycoris_layouts import (
    OWN_LAYOUT,
    differs,
    holds_lycoris,
    read_lycoris_file,
    write_lycoris_file,
)
from simpletuner.models.adapters.weights_file import find_weights
from simpletuner.models.family import ModelFamily

FAMILY = "ltxvideo"
SINGLE_FILE = "single-file"
SUFFIX = ".safetensors"
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
    """The adapter file behind a path: the file itself, or the one in a run folder or checkpoint.

    Raises:
        UserError: If there is none.
    """
    path = place / ADAPTER_FILE if place.is_dir() else place
    if place.is_dir() and not path.is_file() and (place / TRANSFORMER_FOLDER).is_dir():
        raise UserError(
            f"'{place}' holds a whole transformer and no adapter",
            "This layout is one of adapters",
            "Write --to single-file, or give the folder itself to programs that read Diffusers' layout",
        )
    if not path.is_file():
        raise UserError(
            f"there is no file '{path}'",
            "Export wants an adapter file, a run folder or a checkpoint",
            "Correct the path",
        )
    return path


def convert_adapter(source: Path, layout: str, output: Path) -> ExportReport:
    """Write an adapter in another layout, read the result back and compare every layer.

    A LyCORIS file of a kind that is a LoRA becomes an ordinary LoRA; of other kinds the names change, and the
    multiplier becomes part of the tensors.

    Raises:
        UserError: If the file is not understood whole, `output` is taken or cannot be written, the program behind the
            layout does not read such adapters, or the result differs.
    """
    refuse_taken(output)
    family: ModelFamily = FAMILIES.load(FAMILY)
    if holds_lycoris(source):
        weights = read_lycoris_file(source, family)
        written = write_lycoris_file(output, weights, layout, family)
        if differs(written, read_lycoris_file(output, family)):
            output.unlink()
            raise _differs(output, 0.0)
        return ExportReport(output, len(weights.layers), 0.0, 0.0)
    if layout == OWN_LAYOUT:
        raise UserError(
            f"'{source}' is a LoRA", "The LyCORIS names are for adapters of its kinds", "Choose another layout"
        )
    file = read_lora_file(source, family)
    write_lora_file(output, file, layout, family)
    difference = largest_difference(file, read_lora_file(output, family))
    if difference > CONVERSION_TOLERANCE:
        output.unlink()
        raise _differs(output, CONVERSION_TOLERANCE)
    return ExportReport(output, len(file.layers), difference, CONVERSION_TOLERANCE)


def join_transformer(source: Path, output: Path) -> ExportReport:
    """Write a trained transformer folder as one file with the original names, and read it back: equal bit for bit.

    Args:
        source: A `transformer` folder, or a run folder or checkpoint that holds one.

    Raises:
        UserError: If there is no such folder, or `output` is taken or cannot be written.
    """
    refuse_taken(output)
    folder = find_weights(source)
    if not folder.is_dir():
        raise UserError(
            f"'{source}' holds no transformer folder",
            "A single file is made of a whole transformer",
            "Merge the adapter into a base: `simpletuner export FILE --base MODEL --merge --output merged.safetensors`",
        )
    family: ModelFamily = FAMILIES.load(FAMILY)
    transformer = family.load_transformer_at(str(folder), None)
    family.save_single_file(output, transformer, {"modelspec.title": folder.resolve().parent.name})
    _refuse_changed(output, transformer, family)
    return ExportReport(output, 0, 0.0, 0.0)


def merge_adapter(source: Path, base: str, output: Path, number_format: str | None = None) -> ExportReport:
    """Write the base's transformer with the adapter (LoRA or LyCORIS) in its weights: `output`/transformer, or one file
    with the original model's names where `output` ends in .safetensors.

    Changed weights are computed in float32 or better, layer by layer, and stored in `number_format` or the base's own;
    all others stay the base's. Then the result is read back: it must be that model bit for bit.

    Args:
        base: A checkpoint, a transformer folder, a single file, or a Hub repository.
        number_format: "fp32", "bf16", or None for what the base has.

    Raises:
        UserError: If file and base do not fit, `output` is taken or cannot be written, or the result differs.
    """
    is_file = output.suffix == SUFFIX
    path = output if is_file else output / TRANSFORMER_FOLDER
    refuse_taken(path)
    family: ModelFamily = FAMILIES.load(FAMILY)
    model = family.load_transformer_at(base, None)
    dtype = next(model.parameters()).dtype if number_format is None else _FORMATS[number_format]
    if holds_lycoris(source):
        weights = read_lycoris_file(source, family)
        metadata, rounding = weights.metadata, merge_lycoris(model, weights, family, source, dtype)
    else:
        file = read_lora_file(source, family)
        _check_layers(file, model, base)
        metadata, rounding = file.metadata, _merge_lora(model, file, dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    summary = {**_of_training(metadata), "merged_adapter": source.name, "merged_into": base}
    if is_file:
        family.save_single_file(path, model, summary, base)
    else:
        write_transformer(model, path, summary)
    _refuse_changed(path, model, family)
    return ExportReport(path, len(rounding), max(rounding.values()), _ROUNDING[dtype])


def _merge_lora(model: nn.Module, file: LoraFile, dtype: torch.dtype) -> dict[str, float]:
    """Put a LoRA into the weights; gives the share by which rounding is off for each layer."""
    rounding = {}
    with torch.no_grad():
        for name, lora in file.layers.items():
            weight = model.get_parameter(f"{name}.weight")
            exact = lora.merged(weight)
            weight.data = exact.to(dtype)
            rounding[name] = largest_share(exact, weight)
    return rounding


def _of_training(metadata: Mapping[str, str]) -> dict[str, str]:
    """Texts of an adapter's header that are still true of the model it was merged into."""
    return {
        key: value
        for key, value in metadata.items()
        if not key.startswith("modelspec.") and key not in ("format", "lora_adapter_metadata", "lycoris_config")
    }


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


def _refuse_changed(path: Path, model: nn.Module, family: ModelFamily) -> None:
    """Read what was written and compare it with the model, bit for bit.

    Raises:
        UserError: If a tensor differs; what was written is removed.
    """
    written: dict[str, Tensor] = dict(family.load_transformer_at(str(path), None).named_parameters())
    own = dict(model.named_parameters())
    if written.keys() == own.keys() and all(torch.equal(tensor, written[name]) for name, tensor in own.items()):
        return
    del written
    retire(path)
    raise _differs(path, 0.0)


def _differs(path: Path, tolerance: float) -> UserError:
    free = shutil.disk_usage(path.parent).free
    return UserError(
        f"'{path}' differs from what it was made from; it was removed",
        f"Reading it back must give the same{f' to {tolerance:.0e}' if tolerance else ' bit for bit'}",
        f"Check that the adapter holds no extreme numbers and that the disk is sound ({free / 1e9:.1f} GB free)",
    )
