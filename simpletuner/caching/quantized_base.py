"""Quantized base models, kept so that the next start loads them instead of quantizing again.

    <cache_dir>/quantized/<fingerprint>/weights.safetensors    every tensor of the model, as it is stored
    <cache_dir>/quantized/<fingerprint>/facts.json             what shaped it, and a checksum of each tensor

The fingerprint covers the checkpoint, the precision, the number format of the rest, and the versions of the packages
whose formats these are. A folder appears whole or not at all, and each tensor is verified as it is read.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simpletuner.caching.checked_tensors import DamagedFileError, read_tensors, write_tensors
from simpletuner.caching.fingerprint import fingerprint
from simpletuner.config.catalogs.precisions import PRECISIONS
from simpletuner.core.files import staged_folder, write_json_atomic
from simpletuner.models.precision.quantize import (
    layers_to_quantize,
    open_storage,
    plain_layer,
    put_layer,
    quiet_libraries,
    set_tensor,
)

FOLDER = "quantized"
WEIGHTS_NAME, FACTS_NAME = "weights.safetensors", "facts.json"
# Raise it when layers are chosen or stored otherwise for the same facts.
RECIPE = 2
_PART = "::"  # between a layer and a part of its stored weight


@dataclass(frozen=True)
class QuantizedBase:
    """The place of one quantized model.

    Attributes:
        root: Folder of all quantized models.
        identity: Fingerprint of the transformer's weights and configuration.
        precision: A name of the catalog that stores layers in fewer bits.
        dtype: Number format of what stays unquantized.
        blocks: Name of the model's list of repeated blocks.
        place: Kind of device that quantizes ("cpu", "cuda"); it may round otherwise than another.
    """

    root: Path
    identity: str
    precision: str
    dtype: torch.dtype
    blocks: str
    place: str = "cpu"

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that shapes the stored tensors."""
        row = PRECISIONS[self.precision]
        package = open_storage(self.precision).package
        return {
            "recipe": RECIPE,
            "transformer": self.identity,
            "precision": self.precision,
            "settings": dict(row.settings),
            "dtype": str(self.dtype),
            "blocks": self.blocks,
            "place": self.place,
            package: importlib.metadata.version(package),
            "torch": torch.__version__.partition("+")[0],
        }

    @property
    def folder(self) -> Path:
        return self.root / fingerprint(self.facts)

    def exists(self) -> bool:
        """Whether there is one; it may still prove damaged."""
        return (self.folder / FACTS_NAME).is_file()

    def load_into(self, shell: nn.Module, device: torch.device) -> nn.Module:
        """Fill an empty model with what is kept.

        Args:
            shell: A model on the meta device; it is of no use after an exception.
            device: Where it shall lie.

        Raises:
            DamagedFileError: If what is kept is not what was written, or does not fit the model.
        """
        storage, chosen = open_storage(self.precision), layers_to_quantize(shell, self.blocks)
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in chosen}
        notes = read_notes(self.folder)
        with quiet_libraries():
            for layer in chosen:
                plain_layer(shell, layer).weight.data = plain_layer(shell, layer).weight.data.to(self.dtype)
            for name, tensor in read_tensors(self.folder / WEIGHTS_NAME, notes["checksums"]):
                layer, mark, part = name.partition(_PART)
                if not mark:
                    set_tensor(shell, name, _own(tensor, device))
                elif layer not in parts:
                    raise DamagedFileError(f"'{layer}' is no layer of the model that is stored in fewer bits")
                else:
                    parts[layer][part] = _own(tensor, device)
            try:
                for layer, tensors in parts.items():
                    put_layer(shell, layer, storage.rebuild(plain_layer(shell, layer), tensors))
            except (KeyError, ValueError, RuntimeError, StopIteration) as error:
                raise DamagedFileError(f"a layer cannot be put together ({error})") from error
        lacking = [name for name, tensor in shell.named_parameters() if tensor.is_meta]
        if lacking:
            raise DamagedFileError(f"{len(lacking)} tensors are missing, such as {lacking[0]}")
        return shell.requires_grad_(False)

    def save(self, model: nn.Module, layers: Sequence[str]) -> int:
        """Keep a model as it was quantized, before anything was attached to it; gives its size in bytes.

        Args:
            model: The model.
            layers: Names of its layers that are stored in fewer bits.

        Raises:
            UserError: If the disk is full or the folder cannot be written.
        """
        tensors = self._tensors(model, layers)
        with staged_folder(self.folder) as staging:
            checksums = write_tensors(staging / WEIGHTS_NAME, tensors)
            write_json_atomic(staging / FACTS_NAME, {"facts": self.facts, "checksums": checksums})
            return (staging / WEIGHTS_NAME).stat().st_size

    def _tensors(self, model: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
        storage = open_storage(self.precision)
        tensors: dict[str, Tensor] = {}
        with quiet_libraries():
            for layer in layers:
                parts = storage.tensors(model.get_submodule(layer))
                tensors |= {f"{layer}{_PART}{part}": tensor for part, tensor in parts.items()}
        weights = {f"{layer}.weight" for layer in layers}
        others = {name: parameter.data for name, parameter in model.named_parameters() if name not in weights}
        return {**tensors, **others}


def _own(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy in memory of its own: kernels for whole numbers want aligned addresses, which a mapped file has not."""
    return tensor.clone() if tensor.device == device else tensor.to(device)


def read_notes(folder: Path) -> Mapping[str, Any]:
    """What stands beside kept weights: "facts" and "checksums".

    Raises:
        DamagedFileError: If it cannot be read.
    """
    try:
        notes = json.loads((folder / FACTS_NAME).read_text(encoding="utf-8"))
        if not isinstance(notes["checksums"], dict):
            raise TypeError("no checksums")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"its {FACTS_NAME} cannot be used ({error})") from error
    return notes  # type: ignore[no-any-return]


def verify_kept(folder: Path) -> None:
    """Prove that every tensor of a kept model is as it was written.

    Raises:
        DamagedFileError: If one is not.
    """
    for _ in read_tensors(folder / WEIGHTS_NAME, read_notes(folder)["checksums"]):
        pass


def kept_models(root: Path) -> list[Path]:
    """Folders of all quantized models that are kept."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and (path / WEIGHTS_NAME).is_file())


def kept_bytes(folder: Path) -> int:
    """Size of a kept model on the disk."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
