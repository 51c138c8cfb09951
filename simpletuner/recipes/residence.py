"""Whether encoded clips and captions stay in memory once they have been read: all of them, or none.

A part would help little: every epoch reads everything once. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.commands import read_size
from simpletuner.config.run_config import RunConfig
from simpletuner.data.sample import Sample
from simpletuner.runtime.machine import Machine

KEPT: Final = "clips and captions in memory"
SHARE: Final = 1 / 8  # of the machine's memory; the rest is for models that wait there, and for everything else


def cached_bytes(config: RunConfig, samples: Iterable[Sample], text_width: int) -> int:
    """Bytes of all latents and text features of `samples` as they are kept in memory: each once, texts padded."""
    grid = FAMILIES[str(config.model.model_family)].grid
    value = 4 if config.caching.vae_cache_dtype == "fp32" else 2
    sizes: dict[object, int] = {}
    texts = {""}
    clips = {}
    for sample in samples:
        texts.update(sample.captions)
        bucket = sample.bucket
        if bucket not in sizes:
            sizes[bucket] = value * math.prod(grid.latent_shape(bucket.width, bucket.height, bucket.num_frames))
        clips[sample.dataset, sample.path, sample.frames, sample.crop] = sizes[bucket]
    text_value = 2 if config.precision.mixed_precision == "bf16" else 4
    return sum(clips.values()) + len(texts) * config.model.tokenizer_max_length * text_width * text_value


def limit_bytes(config: RunConfig, machine: Machine) -> float:
    """What they may take together."""
    try:
        wanted = read_size(config.caching.cache_memory_limit)
    except ValueError:
        return 0.0  # told by the rule about cache_memory_limit
    return min(float(wanted), SHARE * machine.memory_bytes)


def kept_bytes(config: RunConfig, samples: Iterable[Sample], text_width: int, machine: Machine) -> int:
    """What stays in memory; 0 where they are read from the disk each time."""
    limit = limit_bytes(config, machine)
    size = cached_bytes(config, samples, text_width) if limit else 0
    return size if size <= limit else 0
