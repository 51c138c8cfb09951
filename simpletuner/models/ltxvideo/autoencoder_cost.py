"""Parameters, operations and largest tensors of LTX-Video's autoencoders, by walking through their layers.

Follows the layers of Diffusers' `AutoencoderKLLTXVideo` (checked against PyTorch's counter in the
tests), so any configuration can be counted. No torch, no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PATCH = 4  # pixels of one side that are folded into channels before the first convolution
KERNEL = 27  # weights of a 3x3x3 kernel
TIME_CHANNELS = 256
# Tiles of Diffusers' `enable_tiling`, in pixels and frames.
TILE, TILE_STRIDE, TILE_LATENT_FRAMES, SPATIAL = 512, 448, 3, 32
_STRIDES = {"spatial": (1, 2), "temporal": (2, 1), "spatiotemporal": (2, 2)}


@dataclass
class Walk:
    """Counts while the layers are passed: position is `frames` x `height` x `width` cells."""

    frames: int
    height: int
    width: int
    flops: float = 0.0
    parameters: int = 0
    largest: int = 0
    launches: int = 0

    @property
    def cells(self) -> int:
        return self.frames * self.height * self.width

    def convolve(self, inputs: int, outputs: int, kernel: int = KERNEL, *, extra_frames: int = 0) -> None:
        """One convolution that keeps the size; `extra_frames` were put before the clip."""
        cells = (self.frames + extra_frames) * self.height * self.width
        self.flops += 2.0 * kernel * inputs * outputs * cells
        self.parameters += kernel * inputs * outputs + outputs
        self.largest = max(self.largest, outputs * cells, inputs * cells)
        self.launches += 4

    def embed_time(self, width: int) -> None:
        """Two linear layers on one time value."""
        self.flops += 2.0 * (TIME_CHANNELS * width + width * width)
        self.parameters += TIME_CHANNELS * width + width + width * width + width
        self.launches += 6

    def residual(self, inputs: int, outputs: int, *, timed: bool = False, noisy: bool = False) -> None:
        """A residual block: two convolutions, norms, and a 1x1x1 short cut where the widths differ."""
        self.convolve(inputs, outputs)
        self.convolve(outputs, outputs)
        if inputs != outputs:
            self.convolve(inputs, outputs, kernel=1)
            self.parameters += 2 * inputs
        self.parameters += (4 * inputs if timed else 0) + (2 * inputs if noisy else 0)
        self.launches += 16


def walk_encoder(config: Mapping[str, Any], num_frames: int, height: int, width: int) -> Walk:
    """Pass a clip of this pixel size through the encoder."""
    walk = Walk(num_frames, height // PATCH, width // PATCH)
    widths = tuple(config["block_out_channels"])
    layers, scaling = config["layers_per_block"], config["spatio_temporal_scaling"]
    staged = config["down_block_types"][0] == "LTXVideo095DownBlock3D"
    walk.convolve(int(config.get("in_channels", 3)) * PATCH**2, widths[0])
    current = widths[0]
    for number in range(len(widths) - 1 if staged else len(widths)):
        following = widths[min(number + 1, len(widths) - 1)]
        for _ in range(layers[number]):
            walk.residual(current, current)
        if scaling[number]:
            kind = config["downsample_type"][number] if staged else "conv"
            _downsample(walk, kind, current, following)
        if not staged and following != current:
            walk.residual(current, following)
        current = following
    for _ in range(layers[-1]):
        walk.residual(current, current)
    walk.convolve(current, int(config.get("latent_channels", 128)) + 1)
    return walk


def _downsample(walk: Walk, kind: str, inputs: int, outputs: int) -> None:
    if kind == "conv":
        walk.frames, walk.height, walk.width = (walk.frames - 1) // 2 + 1, walk.height // 2, walk.width // 2
        walk.convolve(inputs, inputs)
        return
    time, space = _STRIDES[kind]
    walk.convolve(inputs, outputs // (time * space * space), extra_frames=time - 1)
    walk.frames = (walk.frames + time - 1) // time
    walk.height, walk.width = walk.height // space, walk.width // space


def walk_decoder(config: Mapping[str, Any], latent_frames: int, latent_height: int, latent_width: int) -> Walk:
    """Pass latents of this size through the decoder."""
    walk = Walk(latent_frames, latent_height, latent_width)
    widths = tuple(reversed(config["decoder_block_out_channels"]))
    layers = tuple(reversed(config["decoder_layers_per_block"]))
    scaling = tuple(reversed(config["decoder_spatio_temporal_scaling"]))
    noisy = tuple(reversed(config["decoder_inject_noise"]))
    factors = tuple(reversed(config["upsample_factor"]))
    timed = bool(config["timestep_conditioning"])
    current = widths[0]
    walk.convolve(int(config.get("latent_channels", 128)), current)
    _stage(walk, current, layers[0], timed, noisy[0])
    for number, block_width in enumerate(widths):
        inputs, outputs = current // factors[number], block_width // factors[number]
        if inputs != outputs:
            walk.residual(inputs, outputs, timed=timed, noisy=noisy[number + 1])
        if scaling[number]:
            walk.convolve(outputs * factors[number], outputs * 8)
            walk.frames, walk.height, walk.width = 2 * walk.frames - 1, 2 * walk.height, 2 * walk.width
        _stage(walk, outputs, layers[number + 1], timed, noisy[number + 1])
        current = outputs
    if timed:
        walk.embed_time(2 * current)
        walk.parameters += 2 * current + 1
    walk.convolve(current, int(config.get("out_channels", 3)) * PATCH**2)
    return walk


def _stage(walk: Walk, width: int, layers: int, timed: bool, noisy: bool) -> None:
    """Residual blocks of one width, with their time embedding."""
    if timed:
        walk.embed_time(4 * width)
    for _ in range(layers):
        walk.residual(width, width, timed=timed, noisy=noisy)


def tiles(height: int, width: int) -> list[tuple[int, int]]:
    """(height, width) in pixels of the overlapping tiles that tiling cuts a frame into."""
    if max(height, width) <= TILE:
        return [(height, width)]
    return [
        (min(TILE, height - top), min(TILE, width - left))
        for top in range(0, height, TILE_STRIDE)
        for left in range(0, width, TILE_STRIDE)
    ]


def time_tiles(latent_frames: int) -> list[int]:
    """Latent frames of the overlapping pieces that a tiled decoder takes."""
    if latent_frames < TILE_LATENT_FRAMES:
        return [latent_frames]
    return [min(TILE_LATENT_FRAMES, latent_frames - start) for start in range(latent_frames)]
