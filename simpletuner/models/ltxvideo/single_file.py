"""Original single-file checkpoints: which transformer and which release a file holds.

Reads headers only; the weights are loaded by `transformer.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpletuner.core.errors import UserError
from simpletuner.models.ltxvideo.versions import AutoencoderKind, autoencoder_kind_of_file
from simpletuner.models.ltxvideo.weights import transformer_names
from simpletuner.models.tensor_file import TensorFacts, read_header

CLASS_NAME = "LTXVideoTransformer3DModel"
_RELEASED_HEAD_WIDTHS = {2048: 64, 4096: 128}  # transformer width -> width of one head


def read_transformer_config(path: Path, base_config: Mapping[str, Any]) -> dict[str, Any]:
    """Diffusers configuration of the transformer in a single file, from its tensors' shapes.

    Args:
        path: The file.
        base_config: Configuration of the base checkpoint's transformer; it says how the width is
            cut into heads where neither the file nor the released sizes do. May be empty.

    Raises:
        UserError: If the file holds no LTX-Video transformer, or one in a format that cannot be trained.
    """
    metadata, tensors = read_header(path)
    facts = {new: tensors[old] for old, new in transformer_names(tensors).items()}
    _check_is_ltx(path, facts)
    width, channels = facts["proj_in.weight"].shape
    head_width = _head_width(path, metadata, base_config, width)
    return {
        "_class_name": CLASS_NAME,
        "in_channels": channels,
        "out_channels": facts["proj_out.weight"].shape[0],
        "num_attention_heads": width // head_width,
        "attention_head_dim": head_width,
        "cross_attention_dim": facts["transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "num_layers": 1 + max(int(name.split(".")[1]) for name in facts if name.startswith("transformer_blocks.")),
        "caption_channels": facts["caption_projection.linear_1.weight"].shape[1],
    }


def read_autoencoder_kind(path: Path) -> AutoencoderKind | None:
    """Kind of the autoencoder a single file was published with, or None if the file does not tell."""
    _, tensors = read_header(path)
    return autoencoder_kind_of_file(list(tensors), {name: facts.shape for name, facts in tensors.items()})


def _check_is_ltx(path: Path, facts: Mapping[str, TensorFacts]) -> None:
    needed = (
        "proj_in.weight",
        "proj_out.weight",
        "caption_projection.linear_1.weight",
        "transformer_blocks.0.attn2.to_k.weight",
    )
    missing = [name for name in needed if name not in facts]
    if missing:
        raise UserError(
            f"'{path}' holds no LTX-Video transformer: {missing[0]} is not among its {len(facts)} tensors",
            "A single file has the original names (`model.diffusion_model.…`) or those of Diffusers",
            "Point pretrained_transformer_model_name_or_path at an LTX-Video 0.9 transformer",
        )
    eight_bit = sorted({fact.kind for fact in facts.values() if fact.kind.startswith(("F8", "I8", "U8"))})
    if eight_bit:
        raise UserError(
            f"'{path}' stores its weights in 8 bits ({', '.join(eight_bit)})",
            "Training starts from full weights: their scales are not in the file",
            "Use the bf16 file of the same release",
        )


def _head_width(path: Path, metadata: Mapping[str, str], base_config: Mapping[str, Any], width: int) -> int:
    stated = json.loads(metadata["config"]).get("transformer", {}) if "config" in metadata else {}
    for config in (stated, base_config):
        heads, head_width = config.get("num_attention_heads", 0), config.get("attention_head_dim", 0)
        if heads * head_width == width:
            return int(head_width)
    if width in _RELEASED_HEAD_WIDTHS:
        return _RELEASED_HEAD_WIDTHS[width]
    raise UserError(
        f"'{path}' holds a transformer of width {width}, and nothing says how many heads it has",
        "The width must be 2048, 4096, or that of the base checkpoint's transformer",
        "Give a base checkpoint with the same architecture in pretrained_model_name_or_path",
    )
