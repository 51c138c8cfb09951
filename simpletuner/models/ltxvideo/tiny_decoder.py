"""A small decoder of latents in the layout of TAE files: some two thousandth of the autoencoder's work.

Nobody publishes one for LTX-Video 0.9.x; a user who has trained one names its file, and the demo brings its own.
The file is a safetensors file whose decoder stands under "decoder.N.", numbered as in `_PLAN`; an encoder beside it is
not read. Its widths, its growth in time and its patch follow from the shapes of its tensors.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from simpletuner.core.errors import UserError
from simpletuner.core.files import write_atomic
from simpletuner.models.ltxvideo.positions import SPATIAL, TEMPORAL

_BLOCKS_PER_STAGE = 3
_STAGES = 3
_STAGE_LENGTH = _BLOCKS_PER_STAGE + 3  # memory blocks, doubling, growth in time, convolution
_LAST = 3 + _STAGES * _STAGE_LENGTH + 1
_PREFIX = re.compile(r"decoder\.(\d+)\.")
_LIMIT = 3.0  # latents beyond three deviations say nothing that the others do not


class _MemoryBlock(nn.Module):
    """Looks at a frame and at the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _convolution(2 * width, width), nn.ReLU(), _convolution(width, width), nn.ReLU(), _convolution(width, width)
        )

    def forward(self, frames: Tensor) -> Tensor:
        """[T, C, H, W] -> the same; before the first frame there is nothing."""
        earlier = functional.pad(frames, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]
        return functional.relu(self.conv(torch.cat([frames, earlier], 1)) + frames)


class _Growth(nn.Module):
    """Makes `times` frames of each."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """[T, C, H, W] -> [T * times, C, H, W]."""
        return self.conv(frames).reshape(-1, *frames.shape[1:])  # type: ignore[no-any-return]


class _Limit(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(latents / _LIMIT) * _LIMIT


class TinyDecoder(nn.Module):
    """Normalised latents -> pixels.

    Attributes:
        trimmed_frames: Frames at the start that belong to no frame of the video.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = (256, 128, 64, 64),
        growth: Sequence[int] = (2, 2, 2),
        patch: int = 4,
    ) -> None:
        """
        Args:
            channels: Of the latents.
            widths: Of the three stages and of the last convolution.
            growth: Frames that each stage makes of one; their product is the latents' compression in time.
            patch: Side in pixels of what the last convolution paints at once; 8 * patch is the compression in space.
        """
        super().__init__()
        layers: list[nn.Module] = [_Limit(), _convolution(channels, widths[0]), nn.ReLU()]
        for width, after, times in zip(widths[:-1], widths[1:], growth, strict=True):
            layers += [_MemoryBlock(width) for _ in range(_BLOCKS_PER_STAGE)]
            layers += [nn.Upsample(scale_factor=2), _Growth(width, times), _convolution(width, after, bias=False)]
        layers += [nn.ReLU(), _convolution(widths[-1], 3 * patch**2)]
        self.decoder = nn.Sequential(OrderedDict((str(number), layer) for number, layer in enumerate(layers)))
        self.channels, self.patch = channels, patch
        self.trimmed_frames = growth[0] * growth[1] * growth[2] - 1

    def forward(self, latents: Tensor) -> Tensor:
        """[1, C, f, h, w] -> pixels [1, 3, F, H, W] in [0, 1], not limited to them."""
        painted = functional.pixel_shuffle(self.decoder(latents[0].transpose(0, 1)), self.patch)
        return painted[self.trimmed_frames :].transpose(0, 1)[None]

    @torch.no_grad()
    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        """Normalised latents [B, C, f, h, w] -> pixels [B, 3, F, H, W] float32 in [-1, 1], on the same device.

        Args:
            seed: Not used: nothing here is drawn.
        """
        own = next(self.parameters())
        clips = [self(clip.to(own)).float().clamp(0, 1) for clip in latents.split(1)]
        return (torch.cat(clips) * 2 - 1).to(latents.device)


def save_tiny_decoder(decoder: TinyDecoder, path: Path) -> None:
    """Write the decoder as the file that `load_tiny_decoder` reads.

    Raises:
        UserError: If the disk is full or closed to writing (exit code 6).
    """
    write_atomic(
        path, save({name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()})
    )


def load_tiny_decoder(path: Path, device: torch.device, channels: int) -> TinyDecoder:
    """The decoder of a TAE file, in evaluation mode, float32.

    Raises:
        UserError: If it is no safetensors file, or no such decoder, or one of other latents.
    """
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items() if _PREFIX.match(name)}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: the preview decoder cannot be read ({str(error).splitlines()[0]})",
            "It is a safetensors file",
            "Correct validation_preview_decoder; files of other kinds can run code and are not opened",
        ) from error
    try:
        decoder = _shaped_like(tensors)
        decoder.load_state_dict(tensors)
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path}: this is no preview decoder ({str(error).strip().splitlines()[-1].strip()})",
            'It holds the tensors of a TAE decoder under "decoder.N."',
            "Correct validation_preview_decoder, or remove it: a linear map needs no file",
        ) from error
    if (decoder.channels, decoder.trimmed_frames + 1, 8 * decoder.patch) != (channels, TEMPORAL, SPATIAL):
        raise UserError(
            f"{path}: a decoder of {decoder.channels} channels, {decoder.trimmed_frames + 1} frames and "
            f"{8 * decoder.patch} pixels",
            f"The latents of this model have {channels} channels, and stand for {TEMPORAL} frames and {SPATIAL} pixels",
            "Name a decoder that was trained for LTX-Video 0.9.x",
        )
    return decoder.requires_grad_(False).eval().to(device)


def _shaped_like(tensors: Mapping[str, Tensor]) -> TinyDecoder:
    """A decoder into which these tensors fit.

    Raises:
        KeyError: If one that says its shape is missing.
    """
    first = tensors["decoder.1.weight"]
    after = [tensors[f"decoder.{3 + _STAGE_LENGTH * (stage + 1) - 1}.weight"] for stage in range(_STAGES)]
    grown = [tensors[f"decoder.{3 + _STAGE_LENGTH * (stage + 1) - 2}.conv.weight"] for stage in range(_STAGES)]
    patch = round((tensors[f"decoder.{_LAST}.weight"].shape[0] / 3) ** 0.5)
    growth = [weight.shape[0] // weight.shape[1] for weight in grown]
    return TinyDecoder(first.shape[1], [first.shape[0], *(weight.shape[0] for weight in after)], growth, patch)


def _convolution(given: int, made: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(given, made, 3, padding=1, bias=bias)
