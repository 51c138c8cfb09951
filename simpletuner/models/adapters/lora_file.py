"""LoRA files of every layout: read one, prove that all of it was understood, write it in another layout.

A file becomes one pair of matrices and one strength per layer under the layer's Diffusers name; that form knows no
layout. Which names layers have in files, the family says; which suffixes and prefixes, `config/catalogs/adapters.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from simpletuner.config.catalogs.adapters import LORA_LAYOUTS
from simpletuner.core.errors import Problem, UserError
from simpletuner.core.files import write_atomic
from simpletuner.models.adapters.weights_file import LYCORIS_SETTINGS, read_settings
from simpletuner.models.family import ModelFamily

_PARTS = {
    ".lora_A.weight": "down", ".lora_A.default.weight": "down", ".lora_down.weight": "down",
    ".lora_B.weight": "up", ".lora_B.default.weight": "up", ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude", ".dora_scale": "magnitude",
}  # fmt: skip
LORA_PARTS = tuple(_PARTS)
_CONFIG = "lora_adapter_metadata"
_CONFIG_PREFIX = "transformer."
# What only the writer of a file can know anew.
OF_THE_LAYOUT = ("format", _CONFIG, "modelspec.hash_sha256", "modelspec.date", "modelspec.implementation")


@dataclass(frozen=True)
class LayerLora:
    """The LoRA of one layer: its weight gets scale * up @ down added, and rows of length `magnitude` with DoRA.

    Attributes:
        down: A [r, in]. up: B [out, r]. scale: alpha / r. magnitude: [out], None without DoRA.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def lora_rank(self) -> int:
        return int(self.down.shape[0])

    def delta(self) -> Tensor:
        """scale * up @ down [out, in] in float64."""
        return self.scale * (self.up.double() @ self.down.double())

    def merged(self, weight: Tensor) -> Tensor:
        """`weight` [out, in] with this LoRA in it, computed in float64, as float32.

        DoRA (Liu et al. 2024, arXiv 2402.09353): the rows of weight + delta at the trained lengths.
        """
        total = weight.double() + self.delta()
        if self.magnitude is not None:
            total *= (self.magnitude.double() / total.norm(dim=1)).unsqueeze(1)
        return total.float()


@dataclass(frozen=True)
class LoraFile:
    """One file: Diffusers layer name -> its LoRA, and the texts of the file's metadata."""

    layers: Mapping[str, LayerLora]
    metadata: Mapping[str, str]

    @property
    def uses_dora(self) -> bool:
        return any(layer.magnitude is not None for layer in self.layers.values())


def read_lora_file(path: Path, family: ModelFamily) -> LoraFile:
    """Read a LoRA file of any layout; every tensor in it must be understood.

    The strength of a layer is its `.alpha`, else what the adapter configuration in the metadata says, divided by
    the rank; else 1. LyCORIS files of the kinds that are a LoRA count; their multiplier is part of the strength.

    Raises:
        UserError: If it is no such file, belongs to another model, or holds tensors nobody knows.
    """
    tensors, metadata = read_safetensors(path)
    parts = _sort_parts(path, tensors, family)
    config = _adapter_config(metadata)
    settings = read_settings(path, metadata)
    times = 1.0 if settings is None else settings.multiplier
    if times != 1.0 and any("magnitude" in found for found in parts.values()):
        raise UserError(
            f"'{path}' is a LyCORIS file with DoRA and multiplier {times:g}",
            "DoRA takes no factor on the whole change",
            "Put it into a base with `simpletuner export FILE --base MODEL --merge`",
        )
    layers = {layer: _layer(layer, found, config, times) for layer, found in parts.items()}
    return LoraFile(layers, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as they are.

    Raises:
        UserError: If it cannot be read.
    """
    return read_safetensors(path)[0]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            names, metadata = handle.keys(), dict(handle.metadata() or {})
            return {name: handle.get_tensor(name) for name in names}, metadata
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"'{path}' cannot be read ({error})", "An adapter is a safetensors file", "Check the path and the file"
        ) from error


def _sort_parts(path: Path, tensors: Mapping[str, Tensor], family: ModelFamily) -> dict[str, dict[str, Tensor]]:
    """Layer -> its tensors by part; nothing may be left over, doubled or lacking.

    Raises:
        UserError: With all that does not fit.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    unknown, doubled = [], []
    for name, tensor in tensors.items():
        suffix = next((suffix for suffix in sorted(_PARTS, key=len, reverse=True) if name.endswith(suffix)), "")
        layer = family.layer_named(name.removesuffix(suffix)) if suffix else None
        if layer is None:
            unknown.append(name)
        elif _PARTS[suffix] in parts.setdefault(layer, {}):
            doubled.append(name)
        else:
            parts[layer][_PARTS[suffix]] = tensor
    unpaired = [layer for layer, found in parts.items() if not _is_whole(found)]
    findings = {
        "not known": (unknown, _advice(unknown)),
        "given twice": (doubled, "Export the file again with the tool that wrote it"),
        "without a fitting partner": (unpaired, "A layer needs A [r, in] and B [out, r]; export the file again"),
    }
    problems = [
        Problem(
            f"'{path}': {len(names)} of {len(tensors)} tensors or layers are {what}, such as {', '.join(names[:3])}",
            "Every tensor of an adapter file must belong to a layer of this model, or part of it would be lost",
            advice,
        )
        for what, (names, advice) in findings.items()
        if names
    ]
    if problems or not parts:
        raise UserError.of(problems or [Problem(f"'{path}' holds no tensors", "An adapter has some", "Check the file")])
    return parts


def _is_whole(found: Mapping[str, Tensor]) -> bool:
    if "down" not in found or "up" not in found or found["down"].ndim != 2 or found["up"].ndim != 2:
        return False
    rows = found["magnitude"].numel() if "magnitude" in found else found["up"].shape[0]
    return bool(found["down"].shape[0] == found["up"].shape[1] and rows == found["up"].shape[0])


def _advice(unknown: list[str]) -> str:
    if any(name.startswith("lycoris_") for name in unknown):
        return (
            "This is a LyCORIS file of a kind that is no LoRA: train on with lora_type lycoris, or put it into a base "
            "with `simpletuner export FILE --base MODEL --merge`"
        )
    return "Use an adapter of an LTX-Video 0.9 transformer"


def _adapter_config(metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's settings as Diffusers stores them; empty where the file has none."""
    if _CONFIG not in metadata:
        return {}
    try:
        return {key.removeprefix(_CONFIG_PREFIX): value for key, value in json.loads(metadata[_CONFIG]).items()}
    except ValueError:
        raise UserError(
            f"the metadata '{_CONFIG}' of the adapter file is not JSON",
            "It holds alpha, without which the strength is unknown",
            "Export the file again",
        ) from None


def _layer(layer: str, found: Mapping[str, Tensor], config: Mapping[str, Any], times: float) -> LayerLora:
    down, up = found["down"], found["up"]
    lora_rank = down.shape[0]
    alpha = float(found["alpha"].item()) if "alpha" in found else _stated_alpha(layer, config)
    divisor = math.sqrt(lora_rank) if config.get("use_rslora") and "alpha" not in found else lora_rank
    magnitude = found["magnitude"].reshape(-1).contiguous() if "magnitude" in found else None
    return LayerLora(down, up, times * (1.0 if alpha is None else alpha / divisor), magnitude)


def _stated_alpha(layer: str, config: Mapping[str, Any]) -> float | None:
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    own = next((value for key, value in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{key})", layer)), None)
    return own if own is not None else config.get("lora_alpha")


def write_lora_file(
    path: Path, file: LoraFile, layout: str, family: ModelFamily, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `file` in a layout of `LORA_LAYOUTS`, atomically.

    Where the layout states no alpha, alpha / r is multiplied into B: in B's own format if that is exact, else in
    float32.

    Args:
        metadata: Further texts for the file's metadata.

    Raises:
        UserError: If the disk is full or the folder cannot be written.
    """
    texts = {
        key: value for key, value in file.metadata.items() if key not in (*OF_THE_LAYOUT, LYCORIS_SETTINGS)
    } | dict(metadata or {})
    if layout == "diffusers":
        tensors: dict[str, Tensor] = {}
        row = LORA_LAYOUTS[layout]
        for layer, lora in file.layers.items():
            tensors |= {f"{layer}{row.down}": lora.down.contiguous(), f"{layer}{row.up}": lora.up.contiguous()}
            if lora.magnitude is not None:
                tensors[f"{layer}{row.magnitude}"] = lora.magnitude
        family.save_adapter(path, tensors, describe_lora(file), texts)
        return
    tensors = {}
    for layer, lora in file.layers.items():
        tensors |= named_tensors(layer, lora, layout, family)
    write_atomic(path, serialize(tensors, metadata={**family.adapter_metadata(tensors), **texts, "format": "pt"}))


def named_tensors(layer: str, lora: LayerLora, layout: str, family: ModelFamily) -> dict[str, Tensor]:
    """The tensors of one layer under their names in a layout other than Diffusers'."""
    row = LORA_LAYOUTS[layout]
    name = family.original_layer(layer) if row.original_names else layer
    stem = row.prefix + (name.replace(".", "_") if row.flat else name)
    tensors = {stem + row.down: lora.down.contiguous()}
    if row.states_alpha:
        tensors[stem + row.up] = lora.up.contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(lora.scale * lora.lora_rank, dtype=torch.float32)
    else:
        tensors[stem + row.up] = scaled(lora.up, lora.scale)
    if lora.magnitude is not None:
        tensors[stem + row.magnitude] = lora.magnitude.unsqueeze(1).contiguous()
    return tensors


def unscaled_tensors(
    tensors: Mapping[str, Tensor], layout: str, scale: float, family: ModelFamily
) -> dict[str, Tensor]:
    """Undo `named_tensors` for a layout without alpha: Diffusers names, B divided by `scale` in float64.

    Names that are not known stay as they are, for whoever checks them.
    """
    row = LORA_LAYOUTS[layout]
    words = {row.down: ".lora_A.weight", row.up: ".lora_B.weight", row.magnitude: ".lora_magnitude_vector"}
    given = {}
    for name, tensor in tensors.items():
        suffix = next((suffix for suffix in words if name.endswith(suffix)), "")
        layer = family.layer_named(name.removesuffix(suffix)) if suffix else None
        if suffix == row.up:
            tensor = tensor.double() / scale
        elif suffix == row.magnitude:
            tensor = tensor.reshape(-1)
        given[name if layer is None else layer + words[suffix]] = tensor
    return given


def scaled(up: Tensor, scale: float) -> Tensor:
    """`up` times a factor: in its own format if that is exact, else in float32."""
    exact = up.double() * scale
    narrow = exact.to(up.dtype)
    return (narrow if torch.equal(narrow.double(), exact) else exact.float()).contiguous()


def describe_lora(file: LoraFile) -> dict[str, Any]:
    """The adapter configuration of a file for Diffusers; layers that differ from most are listed one by one."""
    ranks = {layer: lora.lora_rank for layer, lora in file.layers.items()}
    alphas = {layer: lora.scale * lora.lora_rank for layer, lora in file.layers.items()}
    most_rank = Counter(ranks.values()).most_common(1)[0][0]
    most_alpha = Counter(alphas.values()).most_common(1)[0][0]
    other_ranks = {re.escape(layer): value for layer, value in ranks.items() if value != most_rank}
    other_alphas = {re.escape(layer): value for layer, value in alphas.items() if value != most_alpha}
    return {
        "peft_type": "LORA",
        "r": most_rank,
        "lora_alpha": most_alpha,
        "target_modules": sorted(file.layers),
        "bias": "none",
        "use_rslora": False,
        "use_dora": file.uses_dora,
        **({"rank_pattern": other_ranks} if other_ranks else {}),
        **({"alpha_pattern": other_alphas} if other_alphas else {}),
    }


def largest_difference(one: LoraFile, other: LoraFile) -> float:
    """Largest difference of the layers' deltas and magnitudes, as a share of each layer's largest value; infinite
    when the layers are not the same."""
    if one.layers.keys() != other.layers.keys():
        return math.inf
    return max((_difference(lora, other.layers[layer]) for layer, lora in one.layers.items()), default=0.0)


def largest_share(exact: Tensor, rounded: Tensor) -> float:
    """Largest difference of two tensors as a share of the largest value of the first."""
    size = float(exact.abs().max()) or 1.0
    return float((rounded.double() - exact.double()).abs().max()) / size


def _difference(one: LayerLora, other: LayerLora) -> float:
    if (one.magnitude is None) != (other.magnitude is None):
        return math.inf
    pairs = [(one.delta(), other.delta())]
    if one.magnitude is not None and other.magnitude is not None:
        pairs.append((one.magnitude.double(), other.magnitude.double()))
    shares = []
    for first, second in pairs:
        if first.shape != second.shape:
            return math.inf
        shares.append(largest_share(first, second))
    return max(shares)
