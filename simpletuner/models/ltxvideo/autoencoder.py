"""Pixels to normalised latents and back, with every rule of the LTX-Video autoencoders in one place.

Latents are normalised exactly once, here; everything outside sees normalised latents only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from simpletuner.models.ltxvideo.loading import build_module, load_tensors
from simpletuner.models.ltxvideo.positions import SPATIAL, TEMPORAL
from simpletuner.models.ltxvideo.source import LTXSource
from simpletuner.runtime.random import stream_generator
from simpletuner.runtime.seeds import stream_seed


class LTXAutoencoder:
    """The autoencoder of one release.

    Clips pass one at a time, so a latent does not depend on its neighbours in the batch, and
    Diffusers' sliced decoding (broken with a time input up to 0.42) is not needed.
    """

    def __init__(
        self,
        model: AutoencoderKLLTXVideo,
        mean: Tensor,
        std: Tensor,
        decode_timestep: float | None,
        decode_noise: float,
    ) -> None:
        """
        Args:
            model: The Diffusers module, on its device and in its dtype.
            mean, std: [C] float32 statistics of the latents.
            decode_timestep: Time input of the decoder, or None if it takes none.
            decode_noise: Share of noise mixed into the latents before decoding.
        """
        self.model = model
        # The same layers, told that their input is cut into patches already; see `_patches`.
        self._patch = int(model.encoder.patch_size)
        self._after_patches = copy.copy(model.encoder)
        self._after_patches.patch_size = self._after_patches.patch_size_t = 1
        self._mean = mean.view(1, -1, 1, 1, 1)
        self._std = std.view(1, -1, 1, 1, 1)
        self._scale = float(model.config.scaling_factor)
        self._decode_timestep = decode_timestep
        self._decode_noise = decode_noise

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, F, H, W] in [-1, 1] -> normalised posterior means [B, C, f, h, w] float32, on the same device.

        Args:
            pixels: Numbers in [-1, 1], or bytes, of which 0 means -1 and 255 means +1.

        Raises:
            ValueError: If F is not 8k + 1, or H or W no multiple of 32.
        """
        _, _, num_frames, height, width = pixels.shape
        if num_frames % TEMPORAL != 1 or height % SPATIAL or width % SPATIAL:
            raise ValueError(f"a clip of {width}x{height}@{num_frames} is off the raster 32x32@8k+1")
        means = [self._encode_one(clip).float() for clip in pixels.split(1)]
        return self._normalise(torch.cat(means)).to(pixels.device)

    def _encode_one(self, clip: Tensor) -> Tensor:
        """Posterior mean of one clip, as the model gives it."""
        if self.model.use_tiling:
            # Diffusers switches the encoder's temporal tiling by the decoder's flag; encoding stays whole in time.
            self.model.use_framewise_decoding = False
            mean: Tensor = self.model.encode(self._on_model(_as_numbers(clip))).latent_dist.mode()
            return mean
        moments: Tensor = self._after_patches(self._patches(clip.to(self.model.device)))
        return moments.chunk(2, dim=1)[0]

    def _patches(self, clip: Tensor) -> Tensor:
        """[1, 3, F, H, W] -> [1, 3 * P * P, F, H / P, W / P] in the model's dtype, in the order of its own patches.

        The encoder does the same, but with numbers: bytes are gathered in a quarter of the time, and turned into
        numbers plane by plane they stay in a CPU's cache. That saves a fifth of a small encoder's time.
        """
        _, colours, frames, height, width = clip.shape
        side, rows, columns = self._patch, height // self._patch, width // self._patch
        cells = clip.reshape(colours, frames, rows, side, columns, side).permute(0, 5, 3, 1, 2, 4)
        planes = cells.reshape(colours * side * side, frames, rows, columns)
        patches = torch.empty(planes.shape, dtype=self.model.dtype, device=planes.device)
        at_once = 1 if planes.device.type == "cpu" else len(planes)
        for made, taken in zip(patches.split(at_once), planes.split(at_once), strict=True):
            made.copy_(_as_numbers(taken))
        return patches[None]

    @torch.no_grad()
    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        """Normalised latents [B, C, f, h, w] -> pixels [B, 3, F, H, W] float32 in [-1, 1], on the same device.

        Args:
            latents: As the transformer sees them.
            seed: Keys the little noise that time-conditioned decoders expect.
        """
        raw = self._restore(latents.to(self._mean.device, torch.float32))
        self.model.use_framewise_decoding = self.model.use_tiling
        clips = [self._decode_one(clip, seed, number) for number, clip in enumerate(raw.split(1))]
        return torch.cat(clips).to(latents.device)

    def drop_encoder(self) -> None:
        """Free the memory of the encoder; only `decode` works afterwards."""
        del self.model.encoder

    def move(self, device: torch.device) -> None:
        """Go to `device`; weights and statistics keep their formats."""
        self.model.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)

    def weights(self) -> Iterable[Tensor]:
        """All tensors that it consists of."""
        return [*self.model.parameters(), *self.model.buffers(), self._mean, self._std]

    def _decode_one(self, raw: Tensor, seed: int, number: int) -> Tensor:
        time = None
        if self._decode_timestep is not None:
            noise = torch.randn(raw.shape, generator=stream_generator(seed, "decode", number)).to(raw.device)
            raw = (1 - self._decode_noise) * raw + self._decode_noise * noise
            time = torch.tensor([self._decode_timestep], device=raw.device, dtype=self.model.dtype)
        # Decoder B also draws noise inside from the global generator, which must stay untouched.
        with torch.random.fork_rng(devices=[raw.device] if raw.is_cuda else []):
            torch.manual_seed(stream_seed(seed, "decoder", number))
            pixels: Tensor = self.model.decode(self._on_model(raw), time).sample
        return pixels.float().clamp(-1, 1)

    def _on_model(self, clip: Tensor) -> Tensor:
        return clip.to(self.model.device, self.model.dtype)

    def _normalise(self, raw: Tensor) -> Tensor:
        return (raw - self._mean) * self._scale / self._std

    def _restore(self, latents: Tensor) -> Tensor:
        return latents * self._std / self._scale + self._mean


def _as_numbers(pixels: Tensor) -> Tensor:
    """Bytes as numbers in [-1, 1]; numbers as they are."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0) if pixels.dtype == torch.uint8 else pixels


def load_autoencoder(
    source: LTXSource, dtype: torch.dtype, device: torch.device, *, tiling: bool = False
) -> LTXAutoencoder:
    """The autoencoder in evaluation mode; its latent statistics stay float32 whatever `dtype` is.

    Args:
        tiling: Encode and decode large frames in overlapping tiles, and decode long clips in
            overlapping pieces: less memory, slightly different values.

    Raises:
        UserError: If its files do not fit together.
    """
    model = build_module(AutoencoderKLLTXVideo, source.autoencoder, dtype, device)
    model.requires_grad_(False)
    if tiling:
        model.enable_tiling()
    stored = load_tensors(source.autoencoder, None, torch.device("cpu"))
    mean, std = (stored[name].to(device, torch.float32) for name in ("latents_mean", "latents_std"))
    return LTXAutoencoder(model, mean, std, source.version.decode_timestep, source.version.decode_noise)
