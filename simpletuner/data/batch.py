"""What one forward pass receives: tensors of clips of one bucket, and which draws they are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simpletuner.data.sample import BucketKey


@dataclass(frozen=True)
class Batch:
    """What one forward pass receives; every clip has the shape of `bucket`.

    Attributes:
        latents: [B, C, F, H, W] float32 or bfloat16, normalised latents.
        prompt_embeds: [B, L, D] text features.
        prompt_mask: [B, L] bool on the CPU, True = real token.
        frame_rates: [B] float32 on the CPU, frames per second of each clip; the host must know them.
        bucket: Pixel shape of the clips.
        sample_numbers: Running number of each draw since the start of the run; keys all randomness.
        sample_names: Name of each sample, for messages.
        captions: Text of each sample as trained (empty when dropped).
        share: Part of the optimizer step's samples that this batch holds, in [0, 1]; the shares of one step
            sum to 1 over its micro-batches and all processes, so that unequal batches are weighted per sample.
            Where gradients are averaged over processes, the loss is scaled by share * processes. 0 is a
            filler: it keeps its process in step with the others, and its samples are trained elsewhere.
        ends_step: Whether the optimizer steps after this batch.
        epoch: Epoch the batch belongs to, from 1.
        is_i2v: Whether each sample may be given its first frame; empty means none.
        is_prior: Whether each sample's target is the base model's own answer; empty means none.
        features: [B, F, h, w, E] float32, a teacher's features of each latent frame on the grid of the latents, or
            [B, F, 1, 1, E] one per frame; None where no objective asks for them.
        noise: [B, C, F, H, W] float32, what the objective mixes in, drawn ahead; None where it draws by itself.
    """

    latents: Tensor
    prompt_embeds: Tensor
    prompt_mask: Tensor
    frame_rates: Tensor
    bucket: BucketKey
    sample_numbers: tuple[int, ...]
    sample_names: tuple[str, ...]
    captions: tuple[str, ...]
    share: float
    ends_step: bool
    epoch: int
    is_i2v: tuple[bool, ...] = ()
    is_prior: tuple[bool, ...] = ()
    features: Tensor | None = None
    noise: Tensor | None = None

    @property
    def size_bytes(self) -> int:
        """Memory of its tensors."""
        tensors = (self.latents, self.prompt_embeds, self.prompt_mask, self.frame_rates, self.features, self.noise)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def cells(self) -> int:
        """Latent cells of each clip."""
        return self.latents[0, 0].numel()

    def split(self, clips: int) -> tuple[Batch, ...]:
        """Parts of at most `clips` clips, in order and as equal as can be; the whole batch where it has no more."""
        count = len(self.sample_numbers)
        parts = -(-count // clips)
        if parts == 1:
            return (self,)
        ends = [count * number // parts for number in range(parts + 1)]
        return tuple(self._part(slice(*pair)) for pair in itertools.pairwise(ends))

    def _part(self, rows: slice) -> Batch:
        numbers = self.sample_numbers[rows]
        return replace(
            self,
            latents=self.latents[rows],
            prompt_embeds=self.prompt_embeds[rows],
            prompt_mask=self.prompt_mask[rows],
            frame_rates=self.frame_rates[rows],
            sample_numbers=numbers,
            sample_names=self.sample_names[rows],
            captions=self.captions[rows],
            share=self.share * len(numbers) / len(self.sample_numbers),
            is_i2v=self.is_i2v[rows],
            is_prior=self.is_prior[rows],
            features=None if self.features is None else self.features[rows],
            noise=None if self.noise is None else self.noise[rows],
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The same batch on `device`: text in `dtype`, latents untouched in kind (float32 maths)."""
        return replace(
            self,
            latents=self.latents.to(device, non_blocking=True),
            prompt_embeds=self.prompt_embeds.to(device, dtype, non_blocking=True),
            features=None if self.features is None else self.features.to(device, non_blocking=True),
            noise=None if self.noise is None else self.noise.to(device, non_blocking=True),
        )
