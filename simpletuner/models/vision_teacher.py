"""A frozen vision encoder (DINOv2) whose patch features teach: found, identified, loaded, asked.

Weights come from a local folder or from the Hub in Transformers' layout; no code is ever downloaded. The picture is
scaled and normalised here, because the library's own processor needs another package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Dinov2Model

from simpletuner.config.catalogs.teachers import TEACHERS
from simpletuner.core.errors import UserError
from simpletuner.models.component_files import Place, find_weights, read_json, weight_patterns
from simpletuner.models.identity import fingerprint
from simpletuner.models.loading_quietly import progress_bars_hidden

# Mean and spread of the pictures the encoder was trained on, per colour (ImageNet).
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TeacherPlace:
    """A teacher on this machine, not loaded.

    Attributes:
        name: As the user wrote it.
        folder: Where its files lie.
        weights: Its safetensors files.
        config: Its configuration.
    """

    name: str
    folder: Path
    weights: tuple[Path, ...]
    config: Mapping[str, Any]

    @property
    def width(self) -> int:
        """Width of its features."""
        return int(self.config["hidden_size"])

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.config["patch_size"])

    def identity(self) -> str:
        """Fingerprint of its weights and configuration."""
        return fingerprint(self.config, self.weights)


def find_teacher(name: str) -> TeacherPlace:
    """Find a teacher by one of the guide's names, a repository of the Hub or a local folder; downloads what is missing.

    Raises:
        UserError: If there is none, or it is no DINOv2 in safetensors.
    """
    place = Place(TEACHERS.get(name, name))
    folder = place.fetch(["config.json", *weight_patterns("model", None)])
    if not (folder / "config.json").is_file():
        raise UserError(
            f"crepa_encoder '{name}': no config.json in '{folder}'",
            "A vision encoder is a folder or repository in Transformers' layout",
            f"Use one of {', '.join(TEACHERS)}, or correct the path",
        )
    config, weights = read_json(folder / "config.json"), find_weights(folder, "model", None)
    if config.get("model_type") != "dinov2" or not weights:
        found = config.get("model_type", "nothing that is named") if weights else "no safetensors file"
        raise UserError(
            f"crepa_encoder '{name}': found {found}",
            "The teacher must be a DINOv2 model stored as safetensors",
            f"Use one of {', '.join(TEACHERS)}, or a folder with such a model",
        )
    return TeacherPlace(name, folder, weights, config)


class VisionTeacher:
    """A DINOv2 encoder in evaluation mode."""

    def __init__(self, model: Dinov2Model, size: int, frames_at_once: int) -> None:
        """
        Args:
            model: On its device and in its dtype.
            size: Side in pixels of a square with as much area as a picture is scaled to.
            frames_at_once: Pictures per call; 0 or below for all.
        """
        self._model = model
        self._patch = int(model.config.patch_size)
        self._size = size
        self._at_once = frames_at_once
        shape = (1, 3, 1, 1)
        self._mean, self._std = (torch.tensor(values, device=model.device).view(shape) for values in (_MEAN, _STD))

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Patches (down, across) of a picture: its aspect is kept as far as whole patches allow."""
        across = max(1, round(self._size * (width / height) ** 0.5 / self._patch))
        down = max(1, round(self._size * (height / width) ** 0.5 / self._patch))
        return down, across

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Patch features [N, h, w, E] float32 of pictures [N, 3, H, W] in [0, 1]; no class token."""
        down, across = self.grid(pictures.shape[3], pictures.shape[2])
        calls = pictures.split(self._at_once) if self._at_once > 0 else [pictures]
        return torch.cat([self._ask(call, down, across) for call in calls])

    def _ask(self, pictures: Tensor, down: int, across: int) -> Tensor:
        scaled = functional.interpolate(
            pictures.to(self._model.device, torch.float32), size=(down * self._patch, across * self._patch),
            mode="bicubic", antialias=True,
        )  # fmt: skip
        normalised = (scaled.clamp(0, 1) - self._mean) / self._std
        states = self._model(pixel_values=normalised.to(self._model.dtype)).last_hidden_state
        patches: Tensor = states[:, 1:].float()  # the first token stands for the whole picture
        grid: Tensor = patches.unflatten(1, (down, across))
        return grid


def load_teacher(
    place: TeacherPlace, dtype: torch.dtype, device: torch.device, *, size: int, frames_at_once: int = -1
) -> VisionTeacher:
    """The teacher, ready to be asked.

    Raises:
        UserError: If its weights do not fit its configuration.
    """
    with progress_bars_hidden():
        model, report = Dinov2Model.from_pretrained(
            place.folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    if missing := sorted(set(report["missing_keys"]) - {"embeddings.mask_token"}):
        raise UserError(
            f"crepa_encoder '{place.name}' lacks {len(missing)} tensors, such as {missing[0]}",
            "Weights and config.json must belong to one model",
            "Download the encoder again",
        )
    frozen = cast(Dinov2Model, model.eval().requires_grad_(False).to(device))
    return VisionTeacher(frozen, size, frames_at_once)
