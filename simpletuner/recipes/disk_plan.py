"""What a run writes, how much of it is there already, and whether it fits on the disk. Sizes only.

Sizes of tensors are exact; those of videos and logs are estimates. Nothing is written here.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.catalogs.precisions import is_quantized
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Problem, Severity
from simpletuner.events.wording import told_size
from simpletuner.models.cost import ModelCost, TrainedPart
from simpletuner.recipes.run_length import DataPlan, RunLength, video_sizes

AVERAGE_BYTES = 4  # averaged weights are kept in float32
LATENT_BYTES = 2  # latents are kept in bf16
ENTRY_BYTES = 1500  # label of one cache entry
TOKENS_PER_WORD = 1.35  # T5's vocabulary on English captions, estimated
VIDEO_BYTES_PER_PIXEL = 0.02  # H.264 at the exporter's quality, estimated
POSTER_BYTES_PER_PIXEL = 1.2
LOG_BYTES_PER_STEP = 900  # journal and metrics together
FULL_SHARE = 0.9  # of the free space; above it a warning
_MOST_FILES = 200_000  # of a cache folder that are looked at, so that a plan stays quick


@dataclass(frozen=True)
class DiskLine:
    """One thing that is written.

    Attributes:
        what: Its name.
        folder: Where it goes.
        size_bytes: How large it becomes, at most.
        present_bytes: What lies there already.
        detail: How the size comes about.
    """

    what: str
    folder: str
    size_bytes: float
    present_bytes: float
    detail: str

    @property
    def missing_bytes(self) -> float:
        """What is still to be written, if all that is there can be used."""
        return max(self.size_bytes - self.present_bytes, 0.0)


@dataclass(frozen=True)
class Volume:
    """One file system: what the run wants of it, and what is free."""

    folder: str
    needed_bytes: float
    free_bytes: float


@dataclass(frozen=True)
class DiskPlan:
    """All that a run writes."""

    lines: tuple[DiskLine, ...]
    volumes: tuple[Volume, ...]

    @property
    def total_bytes(self) -> float:
        """Everything together."""
        return sum(line.size_bytes for line in self.lines)


def plan_disk(
    config: RunConfig, data: DataPlan | None, length: RunLength, cost: ModelCost, trained: TrainedPart
) -> DiskPlan:
    """Sizes of caches, checkpoints, videos and logs, and the free space where they go."""
    lines = (
        *(_caches(config, data, cost) if data and not data.is_assumed else ()),
        *_quantized_base(config, cost, trained),
        *_checkpoints(config, length, cost, trained),
        *_videos(config, length),
        *_logs(config, length),
    )
    return DiskPlan(lines, _volumes(lines))


def trained_values(cost: ModelCost, trained: TrainedPart) -> int:
    """Number of trained values."""
    if trained.kind == "full":
        return cost.parameters["transformer"]
    if trained.values is not None:
        return trained.values
    return cost.adapter_parameters(trained.targets, trained.lora_rank)


def check_disk(plan: DiskPlan) -> Iterator[Problem]:
    """Findings about volumes that are, or almost are, too small."""
    yield from _unwritable(plan)
    for volume in plan.volumes:
        needed, free = told_size(volume.needed_bytes), told_size(volume.free_bytes)
        told = f"the run writes about {needed} below '{volume.folder}', {free} are free"
        fix = "Free some space, lower checkpoints_total_limit, or put cache_dir or output_dir elsewhere"
        if volume.needed_bytes > volume.free_bytes:
            yield Problem(told, "It cannot fit", fix, "disk")
        elif volume.needed_bytes > FULL_SHARE * volume.free_bytes:
            yield Problem(told, "It may just fit", fix, "disk", Severity.WARNING)


def _caches(config: RunConfig, data: DataPlan, cost: ModelCost) -> Iterator[DiskLine]:
    folders: dict[str, float] = {}
    counts: dict[str, int] = {}
    cache_of = {entry.id: str(entry.cache_dir_vae) for entry in config.all_datasets}
    grid = FAMILIES[str(config.model.model_family)].grid
    cells = {
        bucket: math.prod(grid.latent_shape(bucket.width, bucket.height, bucket.num_frames))
        for bucket in data.encoded_buckets
    }
    seen = set()
    for sample in (*data.samples, *data.evaluation):
        place = (sample.dataset, sample.path, sample.frames, sample.crop)
        if place in seen:
            continue
        seen.add(place)
        folder = cache_of[sample.dataset]
        folders[folder] = folders.get(folder, 0.0) + cells[sample.bucket] * LATENT_BYTES + ENTRY_BYTES
        counts[folder] = counts.get(folder, 0) + 1
    for folder, size in folders.items():
        yield DiskLine("latents", folder, size, _size_of(folder), f"{counts[folder]} clips in bf16")
    texts = {*data.captions, ""}
    if config.prompts and config.validation.makes_videos:
        texts |= {config.validation.validation_negative_prompt, *(prompt.prompt for prompt in config.prompts)}
    value = 2 if config.precision.mixed_precision == "bf16" else 4
    tokens = sum(caption_tokens(text, config.model.tokenizer_max_length) for text in texts)
    size = tokens * cost.text_width * value + len(texts) * ENTRY_BYTES
    folder = str(config.text_embeds.cache_dir)
    yield DiskLine("captions", folder, size, _size_of(folder), f"{len(texts)} texts, about {tokens} tokens")


def _quantized_base(config: RunConfig, cost: ModelCost, trained: TrainedPart) -> Iterator[DiskLine]:
    if trained.kind == "lora" and is_quantized(trained.stored) and config.precision.quantized_base_cache:
        size = cost.stored_bytes("transformer", trained.stored, trained.weight_bytes)
        folder = f"{config.caching.cache_dir or config.checkpoint.output_dir + '/cache'}/quantized"
        yield DiskLine("quantized base", folder, size, _size_of(folder), f"{trained.stored}, kept for later starts")


def caption_tokens(text: str, longest: int) -> int:
    """About how many tokens a text has, the end token included."""
    return min(longest, 1 + round(TOKENS_PER_WORD * len(text.split())))


def _checkpoints(config: RunConfig, length: RunLength, cost: ModelCost, trained: TrainedPart) -> Iterator[DiskLine]:
    values, folder = trained_values(cost, trained), config.checkpoint.output_dir
    averaged = AVERAGE_BYTES if config.average.use_ema else 0
    each = values * (trained.parameter_bytes + trained.state_bytes + averaged)
    # The new one is complete before the oldest goes.
    most = min(length.checkpoints, length.checkpoints_kept + 1)
    if most:
        yield DiskLine("checkpoints", folder, most * each, 0.0,
                       f"{most} of {told_size(each)}: {values:,} values with the optimizer's state")  # fmt: skip
    yield DiskLine("trained weights", folder, values * trained.parameter_bytes, 0.0, f"{values:,} values")


def _videos(config: RunConfig, length: RunLength) -> Iterator[DiskLine]:
    sizes = video_sizes(config)
    if not length.validations or not sizes:
        return
    frames = config.validation.num_frames
    each = sum(w * h * (frames * VIDEO_BYTES_PER_PIXEL + POSTER_BYTES_PER_PIXEL) for w, h in sizes) / len(sizes)
    count = length.validations * length.videos_each
    yield DiskLine("validation videos", config.checkpoint.output_dir, count * each, 0.0,
                   f"{count} of about {told_size(each)}")  # fmt: skip


def _logs(config: RunConfig, length: RunLength) -> Iterator[DiskLine]:
    if length.steps:
        yield DiskLine("journal and metrics", config.checkpoint.output_dir, length.steps * LOG_BYTES_PER_STEP, 0.0,
                       f"{length.steps:,} steps")  # fmt: skip


def _unwritable(plan: DiskPlan) -> Iterator[Problem]:
    """Folders that cannot be made or written, each told once."""
    for folder in dict.fromkeys(line.folder for line in plan.lines):
        nearest = Path(folder).expanduser().absolute()
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            yield Problem(f"'{folder}' cannot be a folder: '{nearest}' is a file", "The run writes into it",
                          "Choose another folder", "disk")  # fmt: skip
        elif not os.access(nearest, os.W_OK | os.X_OK):
            yield Problem(f"'{folder}' cannot be written", f"'{nearest}' does not allow it",
                          "Choose another folder, or correct its permissions", "disk")  # fmt: skip


def _volumes(lines: tuple[DiskLine, ...]) -> tuple[Volume, ...]:
    wanted: dict[int, tuple[str, float]] = {}
    for line in lines:
        parent = _existing(Path(line.folder))
        device = parent.stat().st_dev
        folder, size = wanted.get(device, (line.folder, 0.0))
        wanted[device] = (folder, size + line.missing_bytes)
    return tuple(
        Volume(folder, size, float(shutil.disk_usage(_existing(Path(folder))).free)) for folder, size in wanted.values()
    )


def _existing(path: Path) -> Path:
    absolute = path.expanduser().absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.is_dir())


def _size_of(folder: str) -> float:
    """Bytes of the files below a folder; 0 where there is none."""
    total, count, waiting = 0.0, 0, [Path(folder).expanduser()]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif count < _MOST_FILES:
                count += 1
                total += entry.stat(follow_symlinks=False).st_size
    return total
