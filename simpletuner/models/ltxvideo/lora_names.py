"""Which linear layer of the transformer a LoRA file means, whatever tool wrote it. Names only."""

from __future__ import annotations

import re

from simpletuner.models.ltxvideo.weights import to_diffusers, to_original

# Longest first: `model.diffusion_model.` ends in another one.
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
_FLAT_PREFIXES = ("lora_unet_", "lycoris_")
_AT_THE_ENDS = (
    "proj_in",
    "proj_out",
    "time_embed.emb.timestep_embedder.linear_1",
    "time_embed.emb.timestep_embedder.linear_2",
    "time_embed.linear",
    "caption_projection.linear_1",
    "caption_projection.linear_2",
)
_IN_A_BLOCK = (
    *(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj",
    "ff.net.2",
)
_BLOCK = re.compile(r"transformer_blocks\.(0|[1-9][0-9]*)\.(.+)")
_FLAT_BLOCK = re.compile(r"transformer_blocks_(0|[1-9][0-9]*)_(.+)")
_FLAT_AT_THE_ENDS = {name.replace(".", "_"): layer for layer in _AT_THE_ENDS for name in (layer, to_original(layer))}
_FLAT_IN_A_BLOCK = {layer.replace(".", "_"): layer for layer in _IN_A_BLOCK}


def find_layer(name: str) -> str | None:
    """Diffusers name of the layer called `name` (with any usual prefix, in either naming, dotted or flat)."""
    for flat in _FLAT_PREFIXES:
        if name.startswith(flat):
            return _find_flat(name.removeprefix(flat))
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    layer = to_diffusers(name)
    block = _BLOCK.fullmatch(layer)
    known = block is not None and block[2] in _IN_A_BLOCK
    return layer if known or layer in _AT_THE_ENDS else None


def _find_flat(name: str) -> str | None:
    block = _FLAT_BLOCK.fullmatch(name)
    if block is None:
        return _FLAT_AT_THE_ENDS.get(name)
    layer = _FLAT_IN_A_BLOCK.get(block[2])
    return None if layer is None else f"transformer_blocks.{block[1]}.{layer}"
