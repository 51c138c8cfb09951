"""What a model family tells about its costs before anything is loaded: parameters, operations, bytes.

Plain numbers, no torch. A family offers one `CostSource` through its row in
`config/catalogs/families.py`; `recipes/forecast.py` turns operations into seconds for a card. This
module must not know any architecture or any card.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.sections.model import ModelSection
from simpletuner.core.errors import Problem


@dataclass(frozen=True)
class Operations:
    """The work of one call; one multiply-add counts as 2 FLOP.

    Attributes:
        matrix_flops: Products of linear layers.
        attention_flops: Products of queries, keys and values.
        convolution_flops: Convolutions.
        traffic_bytes: Memory traffic of element-wise work, when each operation reads and writes its tensors once.
        launches: Kernels the host has to start.
    """

    matrix_flops: float = 0.0
    attention_flops: float = 0.0
    convolution_flops: float = 0.0
    traffic_bytes: float = 0.0
    launches: float = 0.0

    @property
    def total_flops(self) -> float:
        """All products together."""
        return self.matrix_flops + self.attention_flops + self.convolution_flops

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.matrix_flops + other.matrix_flops,
            self.attention_flops + other.attention_flops,
            self.convolution_flops + other.convolution_flops,
            self.traffic_bytes + other.traffic_bytes,
            self.launches + other.launches,
        )

    def times(self, count: float, *, launches: float | None = None) -> Operations:
        """The same work `count` times; `launches` is another factor for what one batched call starts once."""
        return Operations(
            self.matrix_flops * count,
            self.attention_flops * count,
            self.convolution_flops * count,
            self.traffic_bytes * count,
            self.launches * (count if launches is None else launches),
        )


@dataclass(frozen=True)
class TrainedPart:
    """What is trained and how, as far as it decides what a step costs.

    Attributes:
        kind: An adapter beside frozen weights, or all weights.
        targets: Linear layers with an adapter, full names; empty for "full".
        lora_rank: Rank of the adapter.
        values: Trained values where they do not follow from the rank; None where they do.
        weight_bytes: Bytes per value of the model's own weights and activations: 2 (bf16) or 4.
        parameter_bytes: Bytes per trained value.
        state_bytes: Bytes of optimizer state per trained value.
        checkpointing: Share of the blocks that are computed again in the backward pass, in [0, 1].
        attention_backward: Cost of attention's backward pass in forward passes: 2.5 for kernels that
            build the scores again, 2 for plain products (Dao 2022, arXiv 2205.14135, section 3).
        stored: Precision of the frozen weights, a name of `config/catalogs/precisions.py`.
        fused: Whether a compiler rebuilds intermediates instead of keeping them.
        keeps_attention: Whether recomputed blocks keep the results of their attention.
        offloads: Whether what is kept waits elsewhere than on the card.
    """

    kind: Literal["lora", "full"] = "lora"
    targets: tuple[str, ...] = ()
    lora_rank: int = 16
    values: int | None = None
    weight_bytes: int = 2
    parameter_bytes: int = 2
    state_bytes: float = 8
    checkpointing: float = 1.0
    attention_backward: float = 2.5
    stored: str = "no_change"
    fused: bool = False
    keeps_attention: bool = False
    offloads: bool = False


class ModelCost(Protocol):
    """The costs of one checkpoint."""

    @property
    def name(self) -> str:
        """What the checkpoint is, for people ("LTX-Video 0.9.5, 2B")."""

    @property
    def basis(self) -> str:
        """Where its shape is known from."""

    @property
    def parameters(self) -> Mapping[str, int]:
        """Number of values of "transformer", "encoder", "decoder" (of the autoencoder) and "text"."""

    @property
    def linear_layers(self) -> Mapping[str, tuple[int, int]]:
        """Full name -> (inputs, outputs) of every linear layer of the transformer."""

    @property
    def blocks(self) -> tuple[int, int]:
        """How many repeated blocks the transformer has, and the values of one."""

    @property
    def text_blocks(self) -> int:
        """How many repeated blocks the text encoder has."""

    @property
    def text_width(self) -> int:
        """Width of the text features."""

    def stored_bytes(self, component: str, precision: str, value_bytes: int) -> float:
        """Bytes of the "transformer", of one "block" of it, of the "text" encoder, or of one "text block", whose large
        layers a precision stores in fewer bits; what stays has `value_bytes` per value."""

    def adapter_parameters(self, targets: tuple[str, ...], lora_rank: int) -> int:
        """Trained values of a LoRA on these layers."""

    def forward(self, tokens: int, text_tokens: int) -> Operations:
        """One forward pass of the transformer over one clip."""

    def train_clip(self, tokens: int, text_tokens: int, trained: TrainedPart) -> Operations:
        """Forward and backward pass over one clip."""

    def activation_bytes(self, tokens: int, trained: TrainedPart) -> float:
        """Peak of what a training step keeps and makes, for `tokens` in one batch."""

    def encode_clip(self, width: int, height: int, num_frames: int, *, tiling: bool) -> Operations:
        """The autoencoder's encoder over one clip in pixels."""

    def decode_clip(self, width: int, height: int, num_frames: int, *, tiling: bool) -> Operations:
        """Its decoder."""

    def encode_bytes(self, width: int, height: int, num_frames: int, *, tiling: bool, value_bytes: int) -> float:
        """Peak of the encoder's tensors, without its weights."""

    def decode_bytes(self, width: int, height: int, num_frames: int, *, tiling: bool, value_bytes: int) -> float:
        """Peak of the decoder's tensors, without its weights."""

    def encode_text(self, text_tokens: int) -> Operations:
        """The text encoder over one caption."""


class CostSource(Protocol):
    """Finds the shape of a checkpoint without loading or downloading anything."""

    def find(self, settings: ModelSection) -> ModelCost:
        """The costs of the checkpoint that the settings name; a published shape where it is not on this machine."""

    def inspect(self, settings: ModelSection) -> tuple[Problem, ...]:
        """Problems of a checkpoint all of whose parts lie on this machine; empty where one would be downloaded."""

    def missing_repositories(self, settings: ModelSection) -> tuple[str, ...]:
        """Hub repositories that would have to be asked, because their parts are not in the local cache."""

    def layers_of_class(self, layers: Mapping[str, Any], module_class: str) -> tuple[str, ...]:
        """Linear layers inside the modules of a class of the catalog row's `module_classes`."""

    def match_targets(self, layers: Mapping[str, Any], endings: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
        """Layers meant by name endings ("attention" and "all" too), and the endings that match none."""


def cost_source(family: str) -> CostSource:
    """The cost arithmetic of a family, imported from its catalog row.

    Raises:
        UserError: If there is no such family.
    """
    module_name, _, attribute = FAMILIES[family].cost.partition(":")
    source: CostSource = getattr(importlib.import_module(module_name), attribute)
    return source
