"""Kinds of adapters, chosen by `model_type` and `lora_type`, and the layouts of LoRA files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from simpletuner.core.catalog import Catalog


@dataclass(frozen=True)
class AdapterRow:
    """One kind of what is trained.

    Attributes:
        target: Function (transformer, family, section, lycoris file or None, dtype, seed) -> Adapter.
        help: One sentence for people.
    """

    target: str
    help: str


ADAPTERS: Catalog[AdapterRow] = Catalog(
    "kind of adapter",
    {
        "standard": AdapterRow(
            "simpletuner.models.adapters.lora:build_lora", "PEFT LoRA: two thin matrices beside each layer."
        ),
        "lycoris": AdapterRow(
            "simpletuner.models.adapters.lycoris:build_lycoris",
            "LyCORIS: LoKr, LoHa, OFT and others, as lycoris_config says.",
        ),
        "full": AdapterRow(
            "simpletuner.models.adapters.full:build_full",
            "All weights of the transformer, without an adapter (`model_type` full).",
        ),
    },
)


@dataclass(frozen=True)
class LayoutRow:
    """How a LoRA file names its tensors: prefix + layer + part.

    Attributes:
        prefix: Stands before each layer.
        original_names: Whether layers have the names of the original model instead of those of Diffusers.
        flat: Whether the dots in a layer's name become underscores.
        down, up, magnitude: The parts: A [r, in], B [out, r], and the row lengths of DoRA.
        states_alpha: Whether each layer has an `.alpha`; without it alpha / r is multiplied into B. None: alpha
            stands in the file's metadata.
        help: One sentence for people.
    """

    prefix: str
    original_names: bool
    flat: bool
    down: str
    up: str
    magnitude: str
    states_alpha: bool | None
    help: str


_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"

LORA_LAYOUTS: Mapping[str, LayoutRow] = MappingProxyType(
    {
        "diffusers": LayoutRow(
            "transformer.", False, False, _DOWN, _UP, ".lora_magnitude_vector", None,
            "Diffusers' pipelines: its layer names, alpha in the metadata.",
        ),
        "comfyui": LayoutRow(
            "diffusion_model.", True, False, _DOWN, _UP, ".dora_scale", False,
            "ComfyUI: the original layer names after `diffusion_model.`, strength 1.",
        ),
        "original": LayoutRow(
            "", True, False, _DOWN, _UP, ".dora_scale", False, "The original layer names alone, strength 1."
        ),
        "kohya": LayoutRow(
            "lora_unet_", True, True, ".lora_down.weight", ".lora_up.weight", ".dora_scale", True,
            "Flat original names after `lora_unet_`, with an alpha for each layer.",
        ),
    }
)  # fmt: skip
