"""The story told before step 1: what was found, what will happen, where things go.

Only words and numbers; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from simpletuner.caching.latents import LatentCache
from simpletuner.caching.prompts import PromptCache
from simpletuner.config.run_config import RunConfig
from simpletuner.data.batches import BatchStream
from simpletuner.data.buckets import describe_buckets
from simpletuner.data.find import summarize_reasons
from simpletuner.data.sample import LeftOut, Sample
from simpletuner.events.types import Event, Noticed, StoryTold
from simpletuner.recipes.plan import RunPlan
from simpletuner.runtime.host import Host
from simpletuner.training.state import TrainState

_NAMED_FILES = 20  # files left out that are named one by one; the rest is counted by reason

Lines = tuple[tuple[str, str], ...]


def tell_plan(config: RunConfig, plan: RunPlan, host: Host, emit: Callable[[Event], None]) -> None:
    """Machine, model, clips found and left out, buckets."""
    emit(StoryTold("Model", (("device", host.device_name), *plan.source.describe())))
    for note in plan.found.notes:
        emit(Noticed("note", note))
    for line in _left_out_lines(plan):
        emit(Noticed("warning", line))
    total = len(plan.found.samples) + len(plan.found.left_out)
    lines: Lines = (
        ("found", f"{total} files in {len(config.datasets)} data set{'s' if len(config.datasets) != 1 else ''}"),
        ("used", f"{len(plan.samples)} ({sum(len(sample.captions) for sample in plan.samples)} captions)"),
        ("left out", str(total - len(plan.samples))),
    )
    emit(StoryTold("Clips", lines))
    emit(StoryTold("Buckets", describe_buckets(plan.samples, plan.family.grid, config.schedule.train_batch_size)))


def tell_training(
    config: RunConfig,
    samples: tuple[Sample, ...],
    caches: tuple[LatentCache, PromptCache],
    state: TrainState,
    batches: BatchStream,
    emit: Callable[[Event], None],
) -> None:
    """Caches, steps and epochs, trained parameters, where things go."""
    latents, prompts = caches
    trainable = state.trainable
    facts = trainable.facts
    plan = state.learning_rate
    batch = config.schedule.train_batch_size
    accumulation = config.schedule.gradient_accumulation_steps
    epochs = state.total_steps / batches.steps_per_epoch
    layers = len(facts["lora_targets"])
    first, last = plan(0), plan(max(state.total_steps - 1, 0))
    lines: Lines = (
        ("latents", f"{latents.encoded} encoded now, {latents.reused} reused"),
        ("captions", f"{prompts.encoded} encoded now, {prompts.reused} reused"),
        (
            "adapter",
            f"LoRA, rank {facts['lora_rank']}, alpha {facts['lora_alpha']:g}, on {layers} layers: "
            f"{trainable.trained_count:,} trained of {trainable.total_count:,} parameters",
        ),
        (
            "optimizer",
            f"{config.optimizer.optimizer}, learning rate {first:.3g} at the first step, {last:.3g} at the last",
        ),
        ("step", f"{batch} clips × {accumulation} micro-batches"),
        ("length", f"{state.total_steps} steps of {batches.steps_per_epoch} per epoch = {epochs:.1f} epochs"),
        ("position", f"step {state.step}, epoch {batches.state_dict()['epoch']}"),
        ("run folder", str(Path(config.checkpoint.output_dir).resolve())),
    )
    emit(StoryTold("Training", lines))


def _left_out_lines(plan: RunPlan) -> list[str]:
    """One sentence per kind of reason, with one file of each named."""
    kept = set(plan.samples)
    pruned = [
        LeftOut(sample.dataset, sample.path, f"bucket {sample.bucket} holds fewer samples than one batch")
        for sample in plan.found.samples
        if sample not in kept
    ]
    left_out = [*plan.found.left_out, *pruned]
    if len(left_out) <= _NAMED_FILES:
        return [f"left out {item.shown_path}: {item.reason}" for item in left_out]
    return [f"left out {line}" for line in summarize_reasons(left_out)]
