"""LTX-Video as a `ModelFamily`: one object that points at the parts of this folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor, nn

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.sections.model import ModelSection
from simpletuner.models.component_files import WEIGHTS_SUFFIX, Place
from simpletuner.models.family import GenerationRequest, GenerationStep
from simpletuner.models.ltxvideo import export, sampling
from simpletuner.models.ltxvideo import transformer as calls
from simpletuner.models.ltxvideo.autoencoder import LTXAutoencoder, load_autoencoder
from simpletuner.models.ltxvideo.loading import empty_module
from simpletuner.models.ltxvideo.lora_names import find_layer
from simpletuner.models.ltxvideo.source import LTXSource, resolve_source
from simpletuner.models.ltxvideo.text import LTXPromptEncoder, load_prompt_encoder
from simpletuner.models.ltxvideo.tiny_decoder import TinyDecoder, load_tiny_decoder
from simpletuner.models.ltxvideo.weights import to_original

_ROW = FAMILIES["ltxvideo"]


class LTXVideoFamily:
    """Fulfils `models.family.ModelFamily`; see there for what each part promises."""

    grid = _ROW.grid
    attention_class = "LTXAttention"
    block_list = "transformer_blocks"

    def resolve(self, settings: ModelSection) -> LTXSource:
        return resolve_source(settings)

    def load_autoencoder(
        self, source: LTXSource, dtype: torch.dtype, device: torch.device, *, tiling: bool = False
    ) -> LTXAutoencoder:
        return load_autoencoder(source, dtype, device, tiling=tiling)

    def load_tiny_decoder(self, path: Path, device: torch.device) -> TinyDecoder:
        return load_tiny_decoder(path, device, self.grid.channels)

    def load_prompt_encoder(
        self,
        source: LTXSource,
        dtype: torch.dtype,
        device: torch.device,
        *,
        precision: str = "no_change",
        streamed: bool = False,
    ) -> LTXPromptEncoder:
        return load_prompt_encoder(source, dtype, device, precision, streamed)

    def load_transformer(self, source: LTXSource, dtype: torch.dtype, device: torch.device) -> nn.Module:
        return calls.load_transformer(source, dtype, device)

    def empty_transformer(self, source: LTXSource) -> nn.Module:
        transformer: nn.Module = empty_module(LTXVideoTransformer3DModel, source.transformer)
        return transformer

    def transformer_in_pieces(self, source: LTXSource) -> tuple[nn.Module, Iterator[tuple[str, Tensor]]]:
        return calls.transformer_in_pieces(source)

    def predict(
        self,
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
        return calls.predict(
            transformer,
            source,
            noised_latents,
            sigmas,
            prompt_embeds,
            prompt_mask,
            frame_rates,
            first_frame_sigmas,
            cell_sigmas,
        )

    def noise_levels(self, source: LTXSource, steps: int, size: tuple[int, int, int]) -> Tensor:
        return sampling.noise_levels(source.version.schedule, steps, math.prod(size))

    def hidden_width(self, transformer: nn.Module) -> int:
        return calls.hidden_width(transformer)

    def input_widths(self, transformer: nn.Module) -> tuple[int, int]:
        return calls.input_widths(transformer)

    def adapter_targets(self, transformer: nn.Module, choice: str | Sequence[str]) -> list[str]:
        return calls.adapter_targets(transformer, choice)

    def generate(
        self,
        transformer: nn.Module,
        source: LTXSource,
        autoencoder: LTXAutoencoder,
        request: GenerationRequest,
        on_step: Callable[[GenerationStep], None] | None = None,
    ) -> np.ndarray:
        return sampling.generate(transformer, source, autoencoder, request, on_step)

    def save_adapter(
        self, path: Path, tensors: dict[str, Tensor], adapter_config: dict[str, Any], metadata: dict[str, str]
    ) -> None:
        export.save_adapter(path, tensors, adapter_config, metadata)

    def save_single_file(
        self, path: Path, transformer: nn.Module, metadata: dict[str, str], base: str | None = None
    ) -> None:
        beside = Place(base).fetch_file() if base is not None and base.endswith(WEIGHTS_SUFFIX) else None
        export.save_single_file(path, transformer, metadata, beside)

    def adapter_metadata(self, tensors: dict[str, Tensor]) -> dict[str, str]:
        return export.model_spec(tensors)

    def layer_named(self, name: str) -> str | None:
        return find_layer(name)

    def original_layer(self, layer: str) -> str:
        return to_original(layer)

    def load_transformer_at(self, place: str, dtype: torch.dtype | None) -> nn.Module:
        return calls.load_transformer_at(place, dtype)


FAMILY = LTXVideoFamily()
