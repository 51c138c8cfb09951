"""From filled caches to a state before its first step: teacher, batches, model, objective, probe.

`train.py` goes on from here with checkpoints, videos and everybody who is told; `profiling.py` takes a few steps and
looks at them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from simpletuner.caching.latents import LatentCache
from simpletuner.caching.prompts import PromptCache
from simpletuner.config.catalogs.precisions import is_quantized
from simpletuner.config.run_config import RunConfig
from simpletuner.data.batches import BatchStream
from simpletuner.data.sample import Sample
from simpletuner.events.phases import phase
from simpletuner.events.types import Event
from simpletuner.models.cost import cost_source
from simpletuner.objectives.flow_matching import draw_noise
from simpletuner.recipes.fitting import machine_of
from simpletuner.recipes.objective import build_objective
from simpletuner.recipes.plan import RunPlan
from simpletuner.recipes.probing import probe_largest
from simpletuner.recipes.product_pace import tell_products
from simpletuner.recipes.quantized import kept_for_run
from simpletuner.recipes.residence import kept_bytes
from simpletuner.recipes.resuming import length_of_run
from simpletuner.recipes.survey import batch_rules
from simpletuner.recipes.teaching import prepare_teaching
from simpletuner.runtime.host import Host
from simpletuner.training.build import Trainable, build_trainable
from simpletuner.training.self_test import refuse_deaf_layers
from simpletuner.training.state import TrainState
from simpletuner.training.step import Objective


@dataclass(frozen=True)
class Beginning:
    """What steps are taken with; `kept_bytes` is what cached clips and captions will take in memory."""

    batches: BatchStream
    trainable: Trainable
    objective: Objective
    state: TrainState
    kept_bytes: int


def begin_training(
    config: RunConfig,
    plan: RunPlan,
    caches: tuple[LatentCache, PromptCache],
    samples: Sequence[Sample],
    host: Host,
    folder: Path,
    emit: Callable[[Event], None],
) -> Beginning:
    """Bring in the model and what it is trained with; no checkpoint is read but for the length of the run.

    Args:
        config: The run's configuration, made to fit into memory.
        plan: What it works on.
        caches: Of clips and captions, filled.
        samples: Those that are trained.
        host: Where it computes.
        folder: Its own folder, which tells it from other runs on this machine.
        emit: Receives what happens.

    Raises:
        UserError: If the model cannot be trained so, or its largest batch does not fit into memory.
    """
    latents, prompts = caches
    teaching = prepare_teaching(config, plan, host, latents, emit)
    width = cost_source(str(config.model.model_family)).find(config.model).text_width
    if kept := kept_bytes(config, plan.all_samples, width, machine_of(host)):
        latents.stay_in_memory()
        prompts.stay_in_memory()
    batches = BatchStream(
        samples,
        latents.read,
        prompts.read,
        batch_rules(config),
        seed=config.schedule.seed,
        caption_dropout=config.data.caption_dropout_probability,
        prefetch=config.data.dataloader_prefetch_qlen if config.data.dataloader_prefetch else 0,
        read_features=teaching.cache.read if teaching.cache else None,
        draw_noise=partial(draw_noise, config.schedule.seed),
    )
    steps = length_of_run(config, batches, plan.checkpoint)
    with phase("init_load_base_model", emit):
        trainable = build_trainable(
            plan.family,
            plan.source,
            config,
            host.device,
            str(folder.resolve()),
            kept_for_run(config, plan.family, plan.source, emit),
        )
    with phase("init_prepare_models", emit):
        if is_quantized(config.precision.base_model_precision):
            refuse_deaf_layers(trainable, plan.family, plan.source, config.precision.base_model_precision)
            width = plan.family.hidden_width(trainable.transformer)
            tell_products(config, plan.family, samples, width, host, folder, emit)
        objective, companions = build_objective(config, plan, trainable, teaching, steps)
        probe_largest(config, plan, host, trainable, objective, companions, batches, steps, emit)
        state = TrainState.begin(trainable, batches, config, steps, companions)
    return Beginning(batches, trainable, objective, state, kept)
