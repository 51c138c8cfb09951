"""What a model family must offer; recipes and rooms above know families only by this protocol.

A family is a folder `models/<model_family>/` with an object that fulfils `ModelFamily`, and a row in
`config/catalogs/families.py`. No base class: a family fulfils the protocol, it inherits nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from simpletuner.config.catalogs.families import Grid
from simpletuner.config.sections.model import ModelSection


@dataclass(frozen=True)
class GenerationRequest:
    """One video to generate.

    Attributes:
        prompt_embeds: [L, D] text features; prompt_mask: [L] bool, True = real token.
        negative_embeds, negative_mask: The same for the negative prompt.
        width, height: Pixels, multiples of the grid's `spatial`.
        num_frames: Of the form temporal * k + 1.
        frame_rate: Frames per second, for positions and export.
        guidance: Classifier-free guidance scale; 1 switches it off.
        num_inference_steps: Denoising steps.
        seed: Seed of the starting noise (CPU generator).
        first_frame: [3, height, width] float32 in [-1, 1], the picture with which the video begins; None for text
            alone. Needs at least temporal + 1 frames.
        guidance_rescale: Share in [0, 1] by which guided predictions get the spread of the prompted ones.
        draws_on_device: Whether the starting noise comes from the computing device's own generator; videos then
            differ between kinds of devices.
    """

    prompt_embeds: Tensor
    prompt_mask: Tensor
    negative_embeds: Tensor
    negative_mask: Tensor
    width: int
    height: int
    num_frames: int
    frame_rate: float
    guidance: float
    num_inference_steps: int
    seed: int
    first_frame: Tensor | None = None
    guidance_rescale: float = 0.0
    draws_on_device: bool = False


@dataclass(frozen=True)
class GenerationStep:
    """One denoising step of a video in the making.

    Attributes:
        number: Steps done, from 1.
        total: Steps of this video.
        sigma: Noise level after the step, in [0, 1]; 0 after the last one.
        clean_latents: [1, C, f, h, w] float32, the video as the model expects it now: x - sigma * velocity at the
            level before the step. After the last step these are the video's latents.
    """

    number: int
    total: int
    sigma: float
    clean_latents: Tensor


class Source(Protocol):
    """A resolved checkpoint: where each component lies and which release it is. Nothing is loaded."""

    @property
    def release(self) -> str:
        """Release of the model, such as "0.9.5"."""

    def identity(self, component: str) -> str:
        """Fingerprint of "autoencoder", "text" or "transformer": changes when its weights or its
        configuration change, and is computed without loading them."""

    def describe(self) -> tuple[tuple[str, str], ...]:
        """(label, value) lines for the story before step 1."""


class Autoencoder(Protocol):
    """Pixels to normalised latents and back."""

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, F, H, W] float32 in [-1, 1] -> normalised posterior means [B, C, f, h, w] float32.

        Bytes are taken as well: 0 means -1, 255 means +1.
        """

    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        """Normalised latents [B, C, f, h, w] -> pixels [B, 3, F, H, W] float32 in [-1, 1]."""

    def drop_encoder(self) -> None:
        """Free the memory of the encoder; only `decode` works afterwards."""

    def move(self, device: torch.device) -> None:
        """Go to `device` with all weights, and compute there from now on."""

    def weights(self) -> Iterable[Tensor]:
        """All tensors that it consists of."""


class LatentDecoder(Protocol):
    """Normalised latents to pixels, roughly."""

    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        """As `Autoencoder.decode`."""


class PromptEncoder(Protocol):
    """Prompts to text features."""

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> features [B, L, D] and mask [B, L] bool, True = real token."""

    def lost_words(self, prompt: str) -> str:
        """The end of the prompt that does not fit into the token length; empty when all fits."""


class ModelFamily(Protocol):
    """One architecture: how to find, load, call and sample it."""

    grid: Grid
    attention_class: str  # class of its attention layers, as adapter files name it
    block_list: str  # name of the list of repeated blocks in its transformer

    def resolve(self, settings: ModelSection) -> Source:
        """Find the checkpoint and its release; download what is missing from the Hub.

        Raises:
            UserError: If a component is missing, of another family, or cannot be reached.
        """

    def load_autoencoder(
        self, source: Source, dtype: torch.dtype, device: torch.device, *, tiling: bool = False
    ) -> Autoencoder: ...

    def load_tiny_decoder(self, path: Path, device: torch.device) -> LatentDecoder:
        """The small decoder of a file, for previews.

        Raises:
            UserError: If the file holds none for the family's latents.
        """

    def load_prompt_encoder(
        self,
        source: Source,
        dtype: torch.dtype,
        device: torch.device,
        *,
        precision: str = "no_change",
        streamed: bool = False,
    ) -> PromptEncoder: ...

    def load_transformer(self, source: Source, dtype: torch.dtype, device: torch.device) -> nn.Module: ...

    def empty_transformer(self, source: Source) -> nn.Module:
        """The transformer without its weights (on the meta device), to look at its layers."""

    def transformer_in_pieces(self, source: Source) -> tuple[nn.Module, Iterator[tuple[str, Tensor]]]:
        """The frozen transformer on the meta device, and its tensors by name, read one by one in the stored format.

        Raises:
            UserError: If its files do not fit together.
        """

    def predict(
        self,
        transformer: nn.Module,
        source: Source,
        noised_latents: Tensor,
        sigmas: Tensor,
        prompt_embeds: Tensor,
        prompt_mask: Tensor,
        frame_rates: Tensor,
        first_frame_sigmas: Tensor | None = None,
        cell_sigmas: Tensor | None = None,
    ) -> Tensor:
        """Velocity prediction [B, C, F, H, W] for noised latents at noise levels sigmas [B] in [0, 1].

        `first_frame_sigmas` [B] are the levels of the first latent frame where they differ; `cell_sigmas` [B, F, H, W]
        those of every latent cell, which then hold instead of both others.
        """

    def noise_levels(self, source: Source, steps: int, size: tuple[int, int, int]) -> Tensor:
        """The falling noise levels [steps + 1] float32 at which the release is sampled, the last one 0.

        `size` is the latent shape (frames, height, width).
        """

    def hidden_width(self, transformer: nn.Module) -> int:
        """Width D of the hidden states between its blocks."""

    def input_widths(self, transformer: nn.Module) -> tuple[int, int]:
        """Channels of its latents and width of its text features, as this transformer was built."""

    def adapter_targets(self, transformer: nn.Module, choice: str | Sequence[str]) -> list[str]:
        """Full names of the linear layers meant by "attention", "all" or a list of name endings.

        Raises:
            UserError: If a listed name matches no layer, with the names that exist.
        """

    def generate(
        self,
        transformer: nn.Module,
        source: Source,
        autoencoder: Autoencoder,
        request: GenerationRequest,
        on_step: Callable[[GenerationStep], None] | None = None,
    ) -> np.ndarray:
        """Frames uint8 [F, H, W, 3] of one generated video."""

    def save_adapter(
        self, path: Path, tensors: dict[str, Tensor], adapter_config: dict[str, Any], metadata: dict[str, str]
    ) -> None:
        """Write one LoRA file which the family's diffusers pipeline loads at the right strength."""

    def save_single_file(
        self, path: Path, transformer: nn.Module, metadata: dict[str, str], base: str | None = None
    ) -> None:
        """Write a whole transformer as one file with the original model's names; what a single file `base` holds
        beside its transformer is taken over.

        Raises:
            UserError: If the disk is full or the folder cannot be written.
        """

    def adapter_metadata(self, tensors: dict[str, Tensor]) -> dict[str, str]:
        """What tools show about an adapter file with these tensors, for its metadata."""

    def layer_named(self, name: str) -> str | None:
        """Diffusers name of the linear layer that a file of any layout calls `name`; None if there is none such."""

    def original_layer(self, layer: str) -> str:
        """Name of a layer in the original model, from the Diffusers one."""

    def load_transformer_at(self, place: str, dtype: torch.dtype | None) -> nn.Module:
        """The transformer of a checkpoint, of a `transformer` folder or of a single file, on the CPU.

        `dtype` None keeps the stored format.

        Raises:
            UserError: If there is none.
        """
