"""LyCORIS files under the names of other programs: the same tensors, read whole and written again.

A file becomes the tensors of each layer by part under the layer's Diffusers name; that form knows no layout. Which
names layers have in files, the family says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from simpletuner.config.catalogs.adapters import LORA_LAYOUTS
from simpletuner.config.catalogs.lycoris_kinds import KINDS
from simpletuner.core.errors import Problem, UserError
from simpletuner.core.files import write_atomic
from simpletuner.models.adapters.lora_file import LORA_PARTS, OF_THE_LAYOUT, read_safetensors, scaled
from simpletuner.models.adapters.lycoris_targets import flat_name
from simpletuner.models.adapters.weights_file import LYCORIS_SETTINGS, read_settings
from simpletuner.models.family import ModelFamily

OWN_LAYOUT = "lycoris"  # as the library and our runs write
_PARTS = (
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "lora_up.weight", "lora_down.weight", "diff", "diff_b",
    "a1.weight", "a2.weight", "b1.weight", "b2.weight", "oft_blocks", "rescale", "on_input", "weight", "alpha",
    "dora_scale",
)  # fmt: skip
_SCALED = frozenset(part for row in KINDS.values() for part in row.scaled_parts)


@dataclass(frozen=True)
class LycorisWeights:
    """One file.

    Attributes:
        layers: Diffusers layer name -> part -> tensor.
        multiplier: Factor on the whole change, which the file's settings state; 1 in files of other programs.
        metadata: Texts in the file's header.
    """

    layers: Mapping[str, Mapping[str, Tensor]]
    multiplier: float
    metadata: Mapping[str, str]

    def own_tensors(self) -> dict[str, Tensor]:
        """The tensors under the library's names."""
        return {f"{flat_name(layer)}.{part}": t for layer, parts in self.layers.items() for part, t in parts.items()}


def holds_lycoris(path: Path) -> bool:
    """Whether a file has tensors of a kind of adapter that is no LoRA.

    Raises:
        UserError: If it cannot be read.
    """
    tensors, _ = read_safetensors(path)
    return any(_part_of(name) and not name.endswith(LORA_PARTS) for name in tensors)


def read_lycoris_file(path: Path, family: ModelFamily) -> LycorisWeights:
    """Read a LyCORIS file with the names of any program; every tensor in it must be understood.

    Raises:
        UserError: If it is no such file, belongs to another model, or holds tensors nobody knows.
    """
    tensors, metadata = read_safetensors(path)
    layers: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        part = _part_of(name)
        layer = family.layer_named(name[: -len(part) - 1]) if part else None
        if layer is None or part in layers.get(layer, {}):
            unknown.append(name)
        else:
            layers.setdefault(layer, {})[part] = tensor
    if unknown or not layers:
        raise UserError(
            f"'{path}': {len(unknown)} of {len(tensors)} tensors are not known, such as {', '.join(unknown[:3])}",
            "Every tensor of an adapter file must belong to a layer of this model, or part of it would be lost",
            "Use an adapter of an LTX-Video 0.9 transformer",
        )
    settings = read_settings(path, metadata)
    return LycorisWeights(layers, 1.0 if settings is None else settings.multiplier, metadata)


def write_lycoris_file(path: Path, weights: LycorisWeights, layout: str, family: ModelFamily) -> LycorisWeights:
    """Write a file with the names of a program, atomically; gives what was written.

    Other programs know no multiplier, so it becomes part of the tensors.

    Raises:
        UserError: If the kind of adapter is not read by other programs, or cannot take the multiplier into itself; or
            if the disk is full or the folder cannot be written.
    """
    if layout != OWN_LAYOUT:
        _refuse_unread(weights, layout)
        weights = _with_multiplier_inside(weights)
    tensors = {
        f"{_stem(layer, layout, family)}.{part}": tensor.contiguous()
        for layer, parts in weights.layers.items()
        for part, tensor in parts.items()
    }
    texts = {key: value for key, value in weights.metadata.items() if key not in OF_THE_LAYOUT}
    facts = {**family.adapter_metadata(tensors), **texts, "format": "pt"}
    write_atomic(path, serialize(tensors, metadata=facts))
    return weights


def differs(one: LycorisWeights, other: LycorisWeights) -> bool:
    """Whether a tensor of two files is not the same, bit for bit."""
    if one.layers.keys() != other.layers.keys() or one.multiplier != other.multiplier:
        return True
    return any(
        parts.keys() != other.layers[layer].keys()
        or any(not torch.equal(tensor, other.layers[layer][part]) for part, tensor in parts.items())
        for layer, parts in one.layers.items()
    )


def _part_of(name: str) -> str:
    """The part that a tensor's name ends in; empty when it ends in none."""
    return next((part for part in sorted(_PARTS, key=len, reverse=True) if name.endswith(f".{part}")), "")


def _stem(layer: str, layout: str, family: ModelFamily) -> str:
    if layout == OWN_LAYOUT:
        return flat_name(layer)
    row = LORA_LAYOUTS[layout]
    name = family.original_layer(layer) if row.original_names else layer
    return row.prefix + (name.replace(".", "_") if row.flat else name)


def _refuse_unread(weights: LycorisWeights, layout: str) -> None:
    if layout == "diffusers":
        raise UserError(
            "a LyCORIS adapter for Diffusers",
            "Its pipelines load LoRA files only",
            "Put it into a base with `simpletuner export FILE --base MODEL --merge`, which Diffusers loads as a model",
        )
    if any("on_input" in parts for parts in weights.layers.values()):
        raise UserError(
            f"a LyCORIS adapter of the kind ia3 for {layout}",
            "Only the LyCORIS library reads this kind",
            "Put it into a base with `simpletuner export FILE --base MODEL --merge`",
        )


def _with_multiplier_inside(weights: LycorisWeights) -> LycorisWeights:
    factor = weights.multiplier
    if factor == 1.0:
        return weights
    stuck = [
        layer for layer, parts in weights.layers.items() if "dora_scale" in parts or not _SCALED.intersection(parts)
    ]
    if stuck:
        raise UserError.of([
            Problem(
                f"multiplier {factor:g} cannot be put into {len(stuck)} layers of the adapter, such as {stuck[0]}",
                "Rotations and DoRA take no factor on the whole change, and other programs know no multiplier",
                "Put it into a base with `simpletuner export FILE --base MODEL --merge`",
            )
        ])  # fmt: skip
    layers = {
        layer: {part: scaled(tensor, factor) if part in _SCALED else tensor for part, tensor in parts.items()}
        for layer, parts in weights.layers.items()
    }
    metadata = dict(weights.metadata)
    if LYCORIS_SETTINGS in metadata:
        settings = {**json.loads(metadata[LYCORIS_SETTINGS]), "multiplier": 1.0}
        metadata[LYCORIS_SETTINGS] = json.dumps(settings, sort_keys=True)
    return LycorisWeights(layers, 1.0, metadata)
