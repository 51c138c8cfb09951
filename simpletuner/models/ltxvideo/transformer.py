"""Loads the transformer, names its trainable layers, and calls it.

The call here is the one of training and of sampling (`denoising.py`); tests/parity shows that it gives the module what
the pipelines of Diffusers give it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor, nn

from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import UserError
from simpletuner.models.ltxvideo.attention import choose_attention
from simpletuner.models.ltxvideo.frame_times import accept_frame_times, last_layer_by_frame, tokens_of
from simpletuner.models.ltxvideo.loading import build_in_pieces, build_module
from simpletuner.models.ltxvideo.packing import pack, unpack
from simpletuner.models.ltxvideo.positions import token_coordinates
from simpletuner.models.ltxvideo.source import LTXSource, find_transformer

TIMESTEPS = 1000.0  # the model's time input is 1000 * sigma
ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


def load_transformer(source: LTXSource, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The transformer with frozen weights, in evaluation mode.

    Raises:
        UserError: If its files do not fit together.
    """
    transformer: nn.Module = build_module(LTXVideoTransformer3DModel, source.transformer, dtype, device)
    transformer.requires_grad_(False)
    _prepare_blocks(transformer, source)
    return transformer


def transformer_in_pieces(source: LTXSource) -> tuple[nn.Module, Iterator[tuple[str, Tensor]]]:
    """The transformer without its weights, on the meta device, and these one by one, in the stored format.

    Raises:
        UserError: If its files do not fit together.
    """
    shell, tensors = build_in_pieces(LTXVideoTransformer3DModel, source.transformer)
    shell.requires_grad_(False)
    _prepare_blocks(shell, source)
    return shell, tensors


def _prepare_blocks(transformer: nn.Module, source: LTXSource) -> None:
    accept_frame_times(transformer)
    choose_attention(transformer, source.attention, compiled=source.compiled)


def load_transformer_at(place: str, dtype: torch.dtype | None) -> nn.Module:
    """The plain transformer of a checkpoint, `transformer` folder or single file, on the CPU; `dtype` None keeps
    the stored format.

    Raises:
        UserError: If there is none.
    """
    component = find_transformer(place)
    transformer: nn.Module = build_module(LTXVideoTransformer3DModel, component, dtype, torch.device("cpu"))
    return transformer.requires_grad_(False)


def predict(
    transformer: nn.Module,
    source: LTXSource,
    noised_latents: Tensor,
    sigmas: Tensor,
    prompt_embeds: Tensor,
    prompt_mask: Tensor,
    frame_rates: Tensor,
    first_frame_sigmas: Tensor | None = None,
    cell_sigmas: Tensor | None = None,
) -> Tensor:
    """Velocity prediction [B, C, F, H, W] float32 (noise minus latents).

    Args:
        transformer: As loaded here, with or without adapters.
        source: Says which time positions its release uses.
        noised_latents: [B, C, F, H, W], best float32; cast to the weights' format here, once.
        sigmas: [B] float32 noise levels in [0, 1].
        prompt_embeds: [B, L, D]
        prompt_mask: [B, L] bool, True = real token; best on the CPU, where the host sees which padding to leave out.
        frame_rates: [B] frames per second of each clip, best on the CPU, where equal calls are remembered.
        first_frame_sigmas: [B] float32 noise levels of the first latent frame where they differ from `sigmas`;
            the transformer must come from `load_transformer`. F is at least 2.
        cell_sigmas: [B, F, H, W] float32 noise levels of each latent cell; they hold instead of the others. The time
            embedding then has one row per token, which costs 6 D numbers per token while the model is computed.
    """
    latent_frames, latent_height, latent_width = noised_latents.shape[2:]
    dtype = base_tensor(transformer).dtype
    device = noised_latents.device
    times = sigmas.to(device, torch.float32) * TIMESTEPS
    # Compiled blocks take one shape of text, whatever the prompts are.
    text, mask = (prompt_embeds, prompt_mask) if source.compiled else without_padding(prompt_embeds, prompt_mask)
    arguments: dict[str, Any] = {
        "hidden_states": pack(noised_latents).to(dtype),
        "encoder_hidden_states": text.to(dtype),
        # Never in a 16-bit format: there 951.3 would become 952.
        "timestep": times,
        "encoder_attention_mask": None if mask is None else mask.to(device, non_blocking=True),
        "video_coords": token_coordinates(
            source.positions, latent_frames, latent_height, latent_width, frame_rates, device
        ),
        "return_dict": False,
    }
    if cell_sigmas is not None:
        arguments["timestep"] = cell_sigmas.to(device, torch.float32).flatten(1) * TIMESTEPS
        tokens = transformer(**arguments)[0]
    elif first_frame_sigmas is None:
        tokens = transformer(**arguments)[0]
    else:
        frame_times = times[:, None].repeat(1, latent_frames)
        frame_times[:, 0] = first_frame_sigmas.to(device, torch.float32) * TIMESTEPS
        with last_layer_by_frame(transformer, latent_frames):
            tokens = tokens_of(transformer(**{**arguments, "timestep": frame_times})[0])
    return unpack(tokens, latent_frames, latent_height, latent_width).float()


def without_padding(prompt_embeds: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Text features without the padding that is behind all prompts, and their mask where padding is left.

    Padding gets exactly no attention, so nothing changes but the work; without a mask the fastest kernels will do. A
    mask on a device is not looked at, because the host would wait for it.

    Args:
        prompt_embeds: [B, L, D]
        prompt_mask: [B, L] bool, True = real token.
    """
    if prompt_mask.device.type != "cpu":
        return prompt_embeds, prompt_mask
    real = prompt_mask.numpy()
    if not real.any(axis=1).all():  # a prompt without a token attends to all of its padding
        return prompt_embeds, prompt_mask
    length = int(np.flatnonzero(real.any(axis=0))[-1]) + 1
    return prompt_embeds[:, :length], None if real[:, :length].all() else prompt_mask[:, :length]


def input_widths(transformer: nn.Module) -> tuple[int, int]:
    """Latent channels and width of the text features the model takes."""
    config: Any = transformer.config
    return int(config.in_channels), int(config.caption_channels)


def hidden_width(transformer: nn.Module) -> int:
    """Width of the hidden states between the blocks."""
    config: Any = transformer.config
    return int(config.num_attention_heads) * int(config.attention_head_dim)


def base_tensor(transformer: nn.Module) -> Tensor:
    """A tensor of the model itself: its device and format are those of the base weights, whatever
    format an adapter has."""
    return transformer.get_parameter("scale_shift_table")


def adapter_targets(transformer: nn.Module, choice: str | Sequence[str]) -> list[str]:
    """Full names of the linear layers meant by "attention", "all" or a list of name endings.

    Raises:
        UserError: If a listed ending matches no layer.
    """
    layers = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    if choice == "all":
        return layers
    endings = ATTENTION_LAYERS if choice == "attention" else [choice] if isinstance(choice, str) else list(choice)
    matches = {ending: [name for name in layers if f".{name}".endswith(f".{ending}")] for ending in endings}
    lost = [ending for ending, found in matches.items() if not found]
    if lost:
        # The block number is the only part of a name that repeats.
        known = sorted({name.split(".", 2)[2] if name.startswith("transformer_blocks.") else name for name in layers})
        raise UserError(
            f"peft_lora_target_modules: {', '.join(lost)} match{'es' if len(lost) == 1 else ''} no layer",
            f"Linear layers are: {', '.join(known)}",
            did_you_mean(lost[0], [*known, *ATTENTION_LAYERS]),
        )
    wanted = {name for found in matches.values() for name in found}
    return [name for name in layers if name in wanted]
