"""What LTX-Video costs: operations, parameters and bytes of every part, from its shape alone.

With L blocks of width d, N video tokens and T text tokens one forward pass takes, at 2 FLOP per
multiply-add: 28 d^2 L N in the linears on video tokens, 4 d^2 L T for the text's keys and values,
4 d L N^2 in self-attention and 4 d L N T in cross-attention, and a little at both ends. The tests
compare all of it with PyTorch's flop counter on the real classes. No torch here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.config.catalogs.precisions import PRECISIONS, stored_bytes
from simpletuner.config.sections.model import ModelSection
from simpletuner.core.errors import Problem, UserError
from simpletuner.models.cost import Operations, TrainedPart
from simpletuner.models.ltxvideo.architecture import (
    TIME_CHANNELS,
    Architecture,
    TransformerShape,
    find_architecture,
    is_missing_repository,
    wanted_places,
)
from simpletuner.models.ltxvideo.autoencoder_cost import (
    SPATIAL,
    Walk,
    tiles,
    time_tiles,
    walk_decoder,
    walk_encoder,
)

TEMPORAL = 8
ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")

# Element-wise work of a block in passes over a tensor of N d values, each operation fused as far as a
# compiler does it: normalisations, modulation, rotation, GELU, residual sums. The two numbers give the
# element-wise times of the project's performance notes (estimated, not measured).
_FORWARD_PASSES, _BACKWARD_PASSES = 20.0, 30.0
# Kernels that a forward pass starts for each block, each adapted layer and the ends, and how many a backward pass has
# for each of those; counted (`benchmarks/step_operations.py`). Where blocks are compiled there are fewer.
_BLOCK_LAUNCHES, _ADAPTER_LAUNCHES, _END_LAUNCHES, _BACKWARD_LAUNCHES = 33.0, 2.0, 53.0, 1.4
_TEXT_LAYER_LAUNCHES = 30.0
# What a product in 8 bits starts beside itself when it is not compiled: rounding rows, putting the scales to the sums.
_ROUNDING_LAUNCHES = {"int8": 13.0, "fp8": 10.0}
# Bytes of that per input and per output of a row, each tensor read and written once.
_ROUNDING_BYTES = {"int8": (3.0, 6.0), "fp8": (3.0, 0.0)}

# Bytes that the backward pass keeps of an uncompiled block, per token and unit of width, counted with
# PyTorch's saved-tensor hooks on our blocks. Key: what is trained, bytes per value of the model, bytes
# per trained value. Adapters in float32 keep their own copy of each input.
_KEPT_BYTES: Mapping[tuple[str, int, int], float] = {
    ("attention", 2, 2): 34.5, ("attention", 2, 4): 54.7, ("attention", 4, 4): 68.7,
    ("blocks", 2, 2): 44.6, ("blocks", 2, 4): 74.7, ("blocks", 4, 4): 88.8,
    ("all", 2, 2): 48.6, ("all", 2, 4): 78.7, ("all", 4, 4): 96.8,
    ("full", 2, 2): 48.4, ("full", 2, 4): 48.4, ("full", 4, 4): 96.5,
}  # fmt: skip
_FUSED_TENSORS = 17  # tensors of N d values that the mathematics needs, by the performance notes (estimated)
_WORKSPACE_TENSORS = 12.5  # live beside what is kept while one block goes backward; counted likewise
_FIRST_LAYER, _TEXT_LAYER = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_k"
# Layers outside the blocks that pass a gradient on to a trained one before them.
_SECOND_AT_THE_ENDS = ("caption_projection.linear_2", "time_embed.emb.timestep_embedder.linear_2", "time_embed.linear")
# Live tensors at the autoencoder's peak in units of its largest one, by bytes per value; counted on the meta device
# for clips of 49 and 121 frames of 768x512. Norms compute in float32, so bf16 is not half of float32.
_ENCODER_PEAK: Mapping[int, float] = {2: 7.4, 4: 5.45}
_DECODER_PEAK: Mapping[int, float] = {2: 6.25, 4: 4.35}


@dataclass(frozen=True)
class ForwardFlops:
    """One forward pass over one clip, by term, in FLOP."""

    linears: float
    text: float
    self_attention: float
    cross_attention: float
    ends: float

    @property
    def total(self) -> float:
        return self.linears + self.text + self.self_attention + self.cross_attention + self.ends


@dataclass(frozen=True)
class LTXCost:
    """Fulfils `models.cost.ModelCost`; see there for what each part promises."""

    architecture: Architecture

    @property
    def name(self) -> str:
        return self.architecture.name

    @property
    def basis(self) -> str:
        return self.architecture.basis

    @functools.cached_property
    def parameters(self) -> Mapping[str, int]:
        encoder, decoder = self._encoder(9, 64, 64), self._decoder(2, 2, 2)
        return {
            "transformer": self.shape.parameters(),
            "encoder": encoder.parameters,
            "decoder": decoder.parameters,
            "text": self.architecture.text_parameters(),
        }

    @functools.cached_property
    def linear_layers(self) -> Mapping[str, tuple[int, int]]:
        return self.shape.linear_layers()

    @property
    def shape(self) -> TransformerShape:
        """The transformer's numbers."""
        return self.architecture.transformer

    @property
    def blocks(self) -> tuple[int, int]:
        return self.shape.layers, self.shape.block_parameters()

    @property
    def text_blocks(self) -> int:
        return int(self.architecture.text["num_layers"])

    @property
    def text_width(self) -> int:
        return self.shape.text_channels

    def stored_bytes(self, component: str, precision: str, value_bytes: int) -> float:
        text, of_text = self.architecture.text_linear_layers(), self.architecture.text
        layers, values = {
            "text": (text, self.parameters["text"]),
            "text block": (text[: len(text) // of_text["num_layers"]], self.architecture.text_block_parameters()),
            "transformer": (self._layers_in("transformer_blocks."), self.parameters["transformer"]),
            "block": (self._layers_in("transformer_blocks.0."), self.blocks[1]),
        }[component]
        plain = values - sum(inputs * outputs for inputs, outputs in layers)
        return plain * value_bytes + sum(stored_bytes(precision, *layer, value_bytes) for layer in layers)

    def _layers_in(self, place: str) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers inside blocks, which alone are stored in fewer bits."""
        return [shape for name, shape in self.linear_layers.items() if name.startswith(place)]

    def adapter_parameters(self, targets: tuple[str, ...], lora_rank: int) -> int:
        return sum(lora_rank * sum(self.linear_layers[name]) for name in targets)

    def forward_flops(self, tokens: int, text_tokens: int) -> ForwardFlops:
        """The terms of one forward pass over one clip of `tokens` video and `text_tokens` text tokens."""
        s, d = self.shape, self.shape.width
        return ForwardFlops(
            linears=28.0 * d * d * s.layers * tokens,
            text=4.0 * d * s.cross_channels * s.layers * text_tokens,
            self_attention=4.0 * d * s.layers * tokens**2,
            cross_attention=4.0 * d * s.layers * tokens * text_tokens,
            ends=2.0 * d * (s.in_channels + s.out_channels) * tokens
            + 2.0 * d * (s.text_channels + d) * text_tokens
            + 2.0 * d * (TIME_CHANNELS + 7 * d),
        )

    def forward(self, tokens: int, text_tokens: int) -> Operations:
        flops = self.forward_flops(tokens, text_tokens)
        return Operations(
            matrix_flops=flops.linears + flops.text + flops.ends,
            attention_flops=flops.self_attention + flops.cross_attention,
            traffic_bytes=_FORWARD_PASSES * self.shape.layers * tokens * self.shape.width * 2,
            launches=self.shape.layers * _BLOCK_LAUNCHES + _END_LAUNCHES,
        )

    def train_clip(self, tokens: int, text_tokens: int, trained: TrainedPart) -> Operations:
        flops, share = self.forward_flops(tokens, text_tokens), trained.checkpointing
        attention = flops.self_attention + flops.cross_attention
        adapter = self._adapter_flops(tokens, text_tokens, trained)
        trained_adapter = self._adapter_backward_flops(tokens, text_tokens, trained)
        backward = self._backward_flops(flops, tokens, text_tokens, trained)
        matrix = flops.linears + flops.text + flops.ends + backward + adapter + trained_adapter
        again = share * (flops.linears + flops.text + adapter)
        forward_launches = self.forward(tokens, text_tokens).launches + _ADAPTER_LAUNCHES * len(trained.targets)
        passes = _FORWARD_PASSES * (1 + share) + _BACKWARD_PASSES
        rounding = self._rounding(tokens, text_tokens, trained).times(2 + share)
        return rounding + Operations(
            matrix_flops=matrix + again,
            attention_flops=attention * (1 + trained.attention_backward + (0 if trained.keeps_attention else share)),
            traffic_bytes=passes * self.shape.layers * tokens * self.shape.width * trained.weight_bytes,
            launches=forward_launches * (1 + share + _BACKWARD_LAUNCHES),
        )

    def activation_bytes(self, tokens: int, trained: TrainedPart) -> float:
        kept = self._kept_bytes(trained)
        again = trained.checkpointing * self.shape.layers
        inputs = trained.weight_bytes * (3 if trained.keeps_attention else 1)  # results of two attentions beside them
        # What the last block keeps is there with all that others keep; a recomputed one fills up when that is gone.
        held = max(self.shape.layers - again, 1) * kept + again * inputs
        if trained.offloads:
            held = 2 * kept  # one block's is used while the next one's is on its way
        return tokens * self.shape.width * (held + _WORKSPACE_TENSORS * trained.weight_bytes)

    def encode_clip(self, width: int, height: int, num_frames: int, *, tiling: bool) -> Operations:
        return _operations(
            self._encoder(num_frames, *tile) for tile in (tiles(height, width) if tiling else [(height, width)])
        )

    def decode_clip(self, width: int, height: int, num_frames: int, *, tiling: bool) -> Operations:
        return _operations(self._decoder(*piece) for piece in _latent_pieces(width, height, num_frames, tiling))

    def encode_bytes(self, width: int, height: int, num_frames: int, *, tiling: bool, value_bytes: int) -> float:
        pieces = tiles(height, width) if tiling else [(height, width)]
        return (
            _ENCODER_PEAK[value_bytes]
            * value_bytes
            * max(self._encoder(num_frames, *piece).largest for piece in pieces)
        )

    def decode_bytes(self, width: int, height: int, num_frames: int, *, tiling: bool, value_bytes: int) -> float:
        pieces = _latent_pieces(width, height, num_frames, tiling)
        return _DECODER_PEAK[value_bytes] * value_bytes * max(self._decoder(*piece).largest for piece in pieces)

    def encode_text(self, text_tokens: int) -> Operations:
        t = self.architecture.text
        inner = t["num_heads"] * t["d_kv"]
        layer = 2.0 * (4 * t["d_model"] * inner + 3 * t["d_model"] * t["d_ff"])
        return Operations(
            matrix_flops=layer * t["num_layers"] * text_tokens,
            attention_flops=4.0 * inner * t["num_layers"] * text_tokens**2,
            traffic_bytes=_FORWARD_PASSES * t["num_layers"] * text_tokens * t["d_model"] * 2,
            launches=t["num_layers"] * _TEXT_LAYER_LAUNCHES,
        )

    def _rounding(self, tokens: int, text_tokens: int, trained: TrainedPart) -> Operations:
        """What products in 8 bits do beside multiplying, in one direction. The products themselves count as bfloat16's:
        what a card gains by them is measured at the start of a run and never promised."""
        kind = PRECISIONS[trained.stored].multiplies if trained.stored in PRECISIONS else ""
        if not kind:
            return Operations()
        read, written = _ROUNDING_BYTES[kind]
        layers = {name: shape for name, shape in self.linear_layers.items() if name.startswith("transformer_blocks.")}
        return Operations(
            traffic_bytes=sum(
                _rows(name, tokens, text_tokens) * (read * inputs + written * outputs)
                for name, (inputs, outputs) in layers.items()
            ),
            launches=0.0 if trained.fused else _ROUNDING_LAUNCHES[kind] * len(layers),
        )

    def _adapter_flops(self, tokens: int, text_tokens: int, trained: TrainedPart) -> float:
        """The adapter's own products in one forward pass."""
        rows = {name: _rows(name, tokens, text_tokens) for name in trained.targets}
        return sum(2.0 * trained.lora_rank * sum(self.linear_layers[name]) * rows[name] for name in trained.targets)

    def _adapter_backward_flops(self, tokens: int, text_tokens: int, trained: TrainedPart) -> float:
        """Gradients of its weights, and of its input where something trained lies before it."""
        total = 0.0
        for name in trained.targets:
            inputs, outputs = self.linear_layers[name]
            rows = _rows(name, tokens, text_tokens)
            needs_input = _has_trained_before(name, trained.targets)
            total += 2.0 * trained.lora_rank * rows * (inputs + outputs + outputs + (inputs if needs_input else 0))
        return total

    def _backward_flops(self, flops: ForwardFlops, tokens: int, text_tokens: int, trained: TrainedPart) -> float:
        """The frozen or trained layers' products in one backward pass, the adapter's left out.

        Frozen layers need the gradient of their input only, and none at all before the first trained
        one: the text side, the ends, and queries, keys and values of the first block.
        """
        d = self.shape.width
        out = 2.0 * d * self.shape.out_channels * tokens
        if trained.kind == "full":
            unneeded = 2.0 * d * (
                self.shape.in_channels * tokens + self.shape.text_channels * text_tokens + TIME_CHANNELS
            )  # fmt: skip
            return 2.0 * (flops.linears + flops.text + flops.ends) - unneeded
        before = _has_trained_before(_FIRST_LAYER, trained.targets)
        text_side = _has_trained_before(_TEXT_LAYER, trained.targets)
        first = 0.0 if before else 6.0 * d * d * tokens
        ends = sum(
            2.0 * math.prod(self.linear_layers[name]) * _rows(name, tokens, text_tokens)
            for name in _SECOND_AT_THE_ENDS
            if _has_trained_before(name, trained.targets)
        )
        return flops.linears - first + out + (flops.text if text_side else 0.0) + ends

    def _kept_bytes(self, trained: TrainedPart) -> float:
        if trained.fused:
            return float(_FUSED_TENSORS * trained.weight_bytes)
        parameter_bytes = max(trained.parameter_bytes, trained.weight_bytes)
        touched = _layers_touched(trained)
        kept = _KEPT_BYTES[touched, trained.weight_bytes, parameter_bytes]
        # Quanto's product keeps its input even where the weight is frozen: those of the feed-forward part come on top.
        is_kept_besides = touched == "attention" and trained.stored.endswith("-quanto")
        return kept + (5.0 * trained.weight_bytes if is_kept_besides else 0.0)

    def _encoder(self, num_frames: int, height: int, width: int) -> Walk:
        return _walk_encoder(_frozen(self.architecture.autoencoder), num_frames, height, width)

    def _decoder(self, latent_frames: int, latent_height: int, latent_width: int) -> Walk:
        return _walk_decoder(_frozen(self.architecture.autoencoder), latent_frames, latent_height, latent_width)


class LTXCostSource:
    """Fulfils `models.cost.CostSource`."""

    def find(self, settings: ModelSection) -> LTXCost:
        return LTXCost(find_architecture(settings))

    def inspect(self, settings: ModelSection) -> tuple[Problem, ...]:
        if not all(Path(place).expanduser().exists() for place in wanted_places(settings)):
            return ()
        from simpletuner.models.ltxvideo.source import resolve_source

        try:
            resolve_source(settings)
        except UserError as error:
            return error.problems
        return ()

    def missing_repositories(self, settings: ModelSection) -> tuple[str, ...]:
        return tuple(place for place in wanted_places(settings) if is_missing_repository(place, settings.revision))

    def layers_of_class(self, layers: Mapping[str, Any], module_class: str) -> tuple[str, ...]:
        part = _CLASS_NAMES.get(module_class)
        return tuple(name for name in layers if part is not None and part in name)

    def match_targets(self, layers: Mapping[str, Any], endings: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
        if endings == ("all",):
            return tuple(layers), []
        wanted = ATTENTION_LAYERS if endings == ("attention",) else endings
        matches = {ending: [name for name in layers if f".{name}".endswith(f".{ending}")] for ending in wanted}
        found = {name for names in matches.values() for name in names}
        return tuple(name for name in layers if name in found), [ending for ending in wanted if not matches[ending]]


COST = LTXCostSource()

# What the names of the linear layers inside a class have in common.
_CLASS_NAMES: Mapping[str, str] = {
    "LTXAttention": ".attn", "FeedForward": ".ff.", "LTXVideoTransformerBlock": "transformer_blocks.",
    "AdaLayerNormSingle": "time_embed.", "PixArtAlphaTextProjection": "caption_projection.", "GELU": ".ff.net.0.proj",
    "Linear": "",
}  # fmt: skip


def _layers_touched(trained: TrainedPart) -> str:
    if trained.kind == "full":
        return "full"
    if any(not name.startswith("transformer_blocks.") and name != "proj_out" for name in trained.targets):
        return "all"
    return "blocks" if any(".ff." in name for name in trained.targets) else "attention"


def _has_trained_before(name: str, targets: tuple[str, ...]) -> bool:
    """Whether the input of a layer depends on a layer with an adapter."""
    if name in ("proj_in", "caption_projection.linear_1") or name.endswith("timestep_embedder.linear_1"):
        return False
    if name == "caption_projection.linear_2" or name.endswith(("attn2.to_k", "attn2.to_v")):
        return any(target.startswith("caption_projection") and target != name for target in targets)
    if name.startswith("time_embed"):
        return any(target.startswith("time_embed.emb") and target != name for target in targets)
    if name.startswith("transformer_blocks.0.attn1.to_") and not name.endswith("to_out.0"):
        return any(target == "proj_in" or target.startswith("time_embed") for target in targets)
    return True


def _rows(name: str, tokens: int, text_tokens: int) -> int:
    """Rows a linear layer multiplies for one clip."""
    if name.startswith("time_embed"):
        return 1
    text = name.startswith("caption_projection") or name.endswith(("attn2.to_k", "attn2.to_v"))
    return text_tokens if text else tokens


def _latent_pieces(width: int, height: int, num_frames: int, tiling: bool) -> list[tuple[int, int, int]]:
    """(frames, height, width) in latent cells of what the decoder is given one after the other."""
    frames = (num_frames - 1) // TEMPORAL + 1
    if not tiling:
        return [(frames, height // SPATIAL, width // SPATIAL)]
    return [(part, h // SPATIAL, w // SPATIAL) for part in time_tiles(frames) for h, w in tiles(height, width)]


def _operations(walks: Any) -> Operations:
    total = Operations()
    for walk in walks:
        total += Operations(convolution_flops=walk.flops, launches=walk.launches)
    return total


def _frozen(config: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A configuration as a key of a cache."""
    lists = sorted((key, tuple(value)) for key, value in config.items() if isinstance(value, (list, tuple)))
    return (
        *lists,
        ("timestep_conditioning", bool(config.get("timestep_conditioning", False))),
        ("latent_channels", int(config.get("latent_channels", 128))),
    )


@functools.lru_cache(maxsize=256)
def _walk_encoder(config: tuple[tuple[str, Any], ...], num_frames: int, height: int, width: int) -> Walk:
    return walk_encoder(dict(config), num_frames, height, width)


@functools.lru_cache(maxsize=256)
def _walk_decoder(config: tuple[tuple[str, Any], ...], frames: int, height: int, width: int) -> Walk:
    return walk_decoder(dict(config), frames, height, width)
