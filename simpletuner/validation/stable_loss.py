"""The loss on clips that are set apart, measured so that two measurements can be compared.

Training's own loss jumps with the noise and the noise levels that a step happens to draw. Here both are fixed: each
clip has its own noise, keyed by its name, and is measured at the same levels every time. The order of clips, the batch
size, the seed of the run and what was drawn before change nothing, and nothing is left changed. Next: `judgement.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from simpletuner.data.batch import Batch
from simpletuner.data.sample import Sample
from simpletuner.models.family import ModelFamily, Source
from simpletuner.objectives.flow_matching import loss_at
from simpletuner.runtime.modes import evaluating
from simpletuner.runtime.random import draw_normal
from simpletuner.runtime.seeds import stream_seed

STREAM: Final = "evaluation"
SEED: Final = 0  # not the run's: two runs are measured alike
POOLED: Final = "pooled"
GIVEN_FIRST: Final = "/i2v"  # ending of a series whose clips are given their first frame

ReadLatents = Callable[[Sample], Tensor]
ReadPrompt = Callable[[str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Yardstick:
    """What is measured, the same at every measurement of a run.

    Attributes:
        sets: Name of a series -> its clips. Those of a series that ends in `GIVEN_FIRST` are given their first latent
            frame without noise, and have more than one.
        levels: Number of noise levels.
        batch_size: Noise levels of one clip that pass through the model at once, at least 1.
        read_latents: Sample -> latents [C, F, H, W].
        read_prompt: Caption -> features [L, D] and mask [L].
    """

    sets: Mapping[str, Sequence[Sample]]
    levels: int
    batch_size: int
    read_latents: ReadLatents
    read_prompt: ReadPrompt

    @property
    def sigmas(self) -> Tensor:
        """The noise levels [levels] float32: the middles of as many equal parts of (0, 1), whatever the release."""
        return (torch.arange(self.levels, dtype=torch.float64) + 0.5).div(self.levels).float()

    @property
    def passes(self) -> int:
        """How often the model is called in one measurement."""
        return sum(map(len, self.sets.values())) * -(-self.levels // self.batch_size)

    @property
    def clips(self) -> int:
        """Clips of all sets."""
        return sum(map(len, self.sets.values()))


@dataclass(frozen=True)
class Measurement:
    """The losses of one measurement.

    Attributes:
        sigmas: The noise levels.
        by_level: Series -> mean over its clips at each noise level.
    """

    sigmas: tuple[float, ...]
    by_level: Mapping[str, tuple[float, ...]]

    @property
    def losses(self) -> dict[str, float]:
        """Series -> mean over clips and noise levels."""
        return {name: sum(values) / len(values) for name, values in self.by_level.items()}

    @property
    def loss(self) -> float:
        """The mean of the series, each counting alike."""
        return sum(self.losses.values()) / len(self.by_level)


def choose_clips(samples: Sequence[Sample], limit: int) -> tuple[Sample, ...]:
    """At most `limit` of the clips, the same at every start: by a hash of their names, so that a folder's order and
    what is added to it later sway the choice as little as can be. They stand in the order of their names."""
    by_hash = sorted(samples, key=lambda sample: (stream_seed(SEED, f"choice/{_key(sample)}", 0), _key(sample)))
    return tuple(sorted(by_hash[:limit], key=_key))


def with_first_frames(sets: Mapping[str, Sequence[Sample]]) -> dict[str, tuple[Sample, ...]]:
    """The sets, and beside each that holds clips those clips once more, as image-to-video."""
    found: dict[str, tuple[Sample, ...]] = {}
    for name, samples in sets.items():
        found[name] = tuple(samples)
        clips = tuple(sample for sample in samples if sample.frames.num_frames > 1)
        if clips:
            found[name + GIVEN_FIRST] = clips
    return found


def pool(sets: Mapping[str, Sequence[Sample]]) -> dict[str, tuple[Sample, ...]]:
    """All clips as one series."""
    return {POOLED: tuple(sample for samples in sets.values() for sample in samples)}


def measure(
    transformer: nn.Module,
    family: ModelFamily,
    source: Source,
    yardstick: Yardstick,
    device: torch.device,
    dtype: torch.dtype,
    on_pass: Callable[[], None] = lambda: None,
) -> Measurement:
    """Measure the transformer as it is, with whatever it wears; its modes and the random states stay as they were.

    Each clip counts with its first caption. The numbers are read from the device once per clip.

    Args:
        dtype: Number format of the text features, as in training.
        on_pass: Called after each call of the model.

    Raises:
        UserError: If latents or text of a clip cannot be read.
    """
    by_level = {}
    with undisturbed(transformer):
        for name, samples in yardstick.sets.items():
            rows = []
            for sample in samples:
                gives_first = name.endswith(GIVEN_FIRST)
                rows.append(
                    _measure_clip(
                        transformer, family, source, yardstick, sample, device, dtype, on_pass, gives_first=gives_first
                    )
                )
            by_level[name] = tuple(torch.stack(rows).mean(0).tolist())
    return Measurement(tuple(yardstick.sigmas.tolist()), by_level)


def _measure_clip(
    transformer: nn.Module,
    family: ModelFamily,
    source: Source,
    yardstick: Yardstick,
    sample: Sample,
    device: torch.device,
    dtype: torch.dtype,
    on_pass: Callable[[], None],
    *,
    gives_first: bool,
) -> Tensor:
    """Losses [levels] float64 of one clip on the CPU."""
    latents = yardstick.read_latents(sample)
    embeds, mask = yardstick.read_prompt(sample.captions[0])
    noise = draw_normal(latents.shape, SEED, f"{STREAM}/{_key(sample)}", [0]).to(device)
    losses = []
    for sigmas in yardstick.sigmas.split(yardstick.batch_size):
        batch = _repeat(sample, latents, embeds, mask, len(sigmas)).to(device, dtype)
        losses.append(loss_at(family, source, transformer, batch, sigmas.to(device), noise, gives_first=gives_first))
        on_pass()
    return torch.cat(losses).double().cpu()


def _repeat(sample: Sample, latents: Tensor, embeds: Tensor, mask: Tensor, count: int) -> Batch:
    """A batch of one clip `count` times."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor.expand(count, *tensor.shape)

    return Batch(
        latents=rows(latents),
        prompt_embeds=rows(embeds),
        prompt_mask=rows(mask),
        frame_rates=torch.full((count,), sample.frames.frame_rate, dtype=torch.float32),
        bucket=sample.bucket,
        sample_numbers=(0,) * count,
        sample_names=(sample.name,) * count,
        captions=(sample.captions[0],) * count,
        share=1.0,
        ends_step=False,
        epoch=0,
    )


def _key(sample: Sample) -> str:
    """What a clip is called whatever its data set is called: noise and choice hang on it."""
    return f"{sample.path}#{sample.part + 1}"


@contextlib.contextmanager
def undisturbed(transformer: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; all modes and random states come back as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.no_grad(), torch.random.fork_rng(devices=devices), evaluating(transformer):
        yield
