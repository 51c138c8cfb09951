"""The story told before step 1: what was found, what will happen, where things go.

Only words and numbers; nothing is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from simpletuner.caching.latents import LatentCache
from simpletuner.caching.prompts import PromptCache
from simpletuner.config.catalogs.families import FAMILIES, Grid
from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.catalogs.precisions import is_quantized
from simpletuner.config.run_config import RunConfig
from simpletuner.core.counting import counted
from simpletuner.data.batches import BatchStream
from simpletuner.data.buckets import describe_buckets
from simpletuner.data.notes import summarize_reasons
from simpletuner.data.sample import BucketKey, Sample
from simpletuner.events.types import Event, Noticed, StoryTold
from simpletuner.events.wording import told_size
from simpletuner.maths.sigmas import auto_shift
from simpletuner.models.adapters.layer_names import tell_layers
from simpletuner.recipes.plan import RunPlan
from simpletuner.recipes.survey import batch_rules, foreign_captions, pruned_samples
from simpletuner.runtime.compiler import missing_compiler
from simpletuner.runtime.host import Host
from simpletuner.training.state import TrainState

_NAMED_FILES = 20  # files left out that are named one by one; the rest is counted by reason

Lines = tuple[tuple[str, str], ...]


def tell_plan(config: RunConfig, plan: RunPlan, host: Host, emit: Callable[[Event], None]) -> None:
    """Machine, model, clips found and left out, buckets."""
    emit(StoryTold("Model", (("device", host.device_name), *plan.source.describe())))
    for note in plan.found.notes:
        emit(Noticed("note", note))
    if config.memory.group_offload_use_stream and config.memory.streams_blocks and host.device.type != "cuda":
        emit(
            Noticed("note", f"group_offload_use_stream has no effect on {host.device_name}: copies are not overlapped")
        )
    for line in _left_out_lines(plan):
        emit(Noticed("warning", line))
    if foreign := foreign_captions(config, plan.samples):
        emit(Noticed("warning", foreign))
    used = {(sample.dataset, sample.path) for sample in plan.samples}
    measured = {(sample.dataset, sample.path) for samples in plan.evaluation.values() for sample in samples}
    sets = len(config.all_datasets)
    seen = used | measured | {(sample.dataset, sample.path) for sample in plan.found.samples}
    seen |= {(item.dataset, item.path) for item in plan.found.left_out}
    excerpts = f" in {len(plan.samples)} excerpts" if len(plan.samples) != len(used) else ""
    apart = counted(len(plan.evaluation), "set")
    lines: Lines = (
        ("found", f"{counted(len(seen), 'file')} in {counted(sets, 'data set')}"),
        ("used", f"{len(used)}{excerpts} ({sum(len(sample.captions) for sample in plan.samples)} captions)"),
        *([("for evaluation", f"{len(measured)} in {apart}, never trained")] if measured else []),
        ("left out", str(len(seen) - len(used | measured))),
    )
    emit(StoryTold("Clips", lines))
    emit(StoryTold("Buckets", describe_buckets(plan.samples, plan.family.grid, batch_rules(config))))


def tell_training(
    config: RunConfig,
    samples: tuple[Sample, ...],
    caches: tuple[LatentCache, PromptCache],
    state: TrainState,
    batches: BatchStream,
    emit: Callable[[Event], None],
    kept_bytes: int = 0,
) -> None:
    """Caches, steps and epochs, trained parameters, where things go."""
    latents, prompts = caches
    trainable = state.trainable
    plan = state.learning_rate
    epochs = batches.epochs.passed(state.total_steps)
    steady = batches.epochs.is_steady
    per_epoch = f"{batches.steps_per_epoch} per epoch" if steady else "epochs of different length"
    first, last = plan(0), plan(max(state.total_steps - 1, 0))
    lines: Lines = (
        ("latents", f"{latents.encoded} encoded now, {latents.reused} reused"),
        ("captions", f"{prompts.encoded} encoded now, {prompts.reused} reused"),
        *((("in memory", f"both once they have been read, {told_size(kept_bytes)}"),) if kept_bytes else ()),
        (
            "adapter",
            f"{trainable.adapter.describe()}: {trainable.trained_count:,} trained of {trainable.total_count:,} "
            "parameters",
        ),
        *((("layers", tell_layers(trainable.adapter.layers)),) if trainable.adapter.layers else ()),
        (
            "optimizer",
            f"{config.optimizer.optimizer}, learning rate {first:.3g} at the first step, {last:.3g} at the last",
        ),
        *_methods(config, state, samples),
        ("step", batch_rules(config).describe()),
        ("length", f"{state.total_steps} steps of {per_epoch} = {epochs:.1f} epochs"),
        ("position", f"step {state.step}, epoch {batches.state_dict()['epoch']}"),
        ("run folder", str(Path(config.checkpoint.output_dir).resolve())),
    )
    emit(StoryTold("Training", lines))


def _methods(config: RunConfig, state: TrainState, samples: tuple[Sample, ...]) -> Lines:
    """What is special about this run; nothing is said of what is switched off."""
    lines: list[tuple[str, str]] = []
    lines += _updates(config, state)
    precision = config.precision
    if is_quantized(precision.base_model_precision):
        lines.append(("base", f"its blocks are stored as {precision.base_model_precision}"))
    if (streamer := state.trainable.streamer) is not None:
        place = "on disk" if config.memory.group_offload_to_disk_path else "in RAM"
        lines.append(("streaming", f"{streamer.groups} groups wait {place}, two are on the device at a time"))
    if state.average is not None:
        lines.append(("average", f"looks back over about {state.average.horizon_steps:.0f} steps, exported as ema/"))
    if config.flow.flow_schedule_auto_shift:
        lines.append(
            ("noise shift", tell_shifts({s.bucket for s in samples}, FAMILIES[str(config.model.model_family)].grid))
        )
    given = sum(sample.is_i2v for sample in samples)
    if given and config.flow.ltx_i2v_prob:
        share = f"{config.flow.ltx_i2v_prob:.0%}"
        lines.append(("image-to-video", f"{given} samples are given their first frame in {share} of their draws"))
    if prior := sum(sample.is_prior for sample in samples):
        lines.append(("prior data", f"{prior} samples are trained towards the base model's own answer"))
    return tuple(lines)


def _updates(config: RunConfig, state: TrainState) -> Lines:
    """How the optimizer works, where that is not as usual."""
    settings, device = config.optimizer, state.trainable.device.type
    row = OPTIMIZERS[settings.optimizer]
    lines: list[tuple[str, str]] = []
    if row.compiles:
        lacking = missing_compiler(device)
        lines.append(("update", f"not compiled and slow: {lacking}" if lacking else "compiled at the first step"))
    if row.averages:
        lines.append(("average", "the optimizer's own is validated, saved and exported"))
    if settings.optimizer_release_gradients:
        lines.append(("gradients", "each is used and dropped in the backward pass"))
    if settings.optimizer_cpu_offload_method == "cpu":
        where = "in RAM, updates on the CPU" if device != "cpu" else "in RAM anyway: the run is on the CPU"
        lines.append(("optimizer state", where))
    return tuple(lines)


def tell_shifts(buckets: Iterable[BucketKey], grid: Grid) -> str:
    """The automatic shift of the noise levels of each bucket, fewest tokens first."""
    shapes = {bucket: grid.latent_shape(bucket.width, bucket.height, bucket.num_frames) for bucket in buckets}
    ordered = sorted(((bucket, math.prod(shape[1:])) for bucket, shape in shapes.items()), key=lambda item: item[1])
    return ", ".join(f"{auto_shift(count):.2f} for {bucket} ({count:,} tokens)" for bucket, count in ordered)


def _left_out_lines(plan: RunPlan) -> list[str]:
    """One sentence per kind of reason, with one file of each named."""
    left_out = [*plan.found.left_out, *pruned_samples(plan.found, plan.samples)]
    if len(left_out) <= _NAMED_FILES:
        return [f"left out {item.shown_path}: {item.reason}" for item in left_out]
    return [f"left out {line}" for line in summarize_reasons(left_out)]
