"""What a forecast gives reason to say: no room on the disk or the card, weeks, mostly validation, many passes.

Pure functions from a forecast to findings; each names the option to change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from simpletuner.config.catalogs.cards import CardRow
from simpletuner.config.draft import Draft
from simpletuner.config.run_config import RunConfig
from simpletuner.config.values import show
from simpletuner.core.counting import counted
from simpletuner.core.errors import Problem, Severity
from simpletuner.events.wording import told_size
from simpletuner.recipes.disk_plan import check_disk
from simpletuner.recipes.forecast import CardForecast, Forecast
from simpletuner.recipes.memory_plan import MemoryPlan
from simpletuner.runtime.machine import Machine

DAY_SECONDS = 24 * 3600.0
LONG_SECONDS = 3 * DAY_SECONDS
LARGE_VALIDATION_SHARE = 0.25
BRIEF_SECONDS = 60.0  # videos or measurements that take less in a whole run are not worth a word
MANY_EPOCHS = 1000
ROOMY_SHARE = 0.7  # of the machine's memory; the rest is for the system, the loader and the first look at the weights


def check_forecast(
    forecast: Forecast, config: RunConfig, reference: CardForecast | None, machine: Machine
) -> Iterator[Problem]:
    """Findings of the plan rules: disk, memory, shares of videos and measuring, runs of weeks, passes over the data.

    Args:
        forecast: The forecast.
        config: Where the options stand.
        reference: The card whose times and memory count; None skips what depends on a card.
        machine: Whose RAM holds what is streamed.
    """
    yield from check_disk(forecast.disk)
    yield from _passes(forecast, config)
    yield from _waiting(forecast, config, machine)
    yield from _aligned_blocks(forecast, config)
    if reference is not None:
        yield from _duration(forecast, config, reference)
        yield from _share(forecast, config, reference)
        yield from _evaluation_share(forecast, config, reference)
        yield from _room(reference)


def tell_choices(plan: MemoryPlan, draft: Draft) -> Iterator[Problem]:
    """What `memory_budget` chose, one note each, and whether it is enough."""
    where = draft.place("memory_budget", "gradient_checkpointing_blocks")
    for choice in plan.choices:
        yield Problem(f"chosen: {choice.option} = {show(choice.value)}", choice.why, "", where, Severity.NOTE)
    if not plan.fits:
        memory = plan.memory
        yield Problem(
            f"{memory.peak_phase} needs about {told_size(memory.peak_bytes)} of {told_size(memory.limit_bytes)} with "
            "everything that may be chosen",
            "It may not fit",
            _smaller(memory.peak_phase),
            where,
            Severity.WARNING,
        )


def _duration(forecast: Forecast, config: RunConfig, reference: CardForecast) -> Iterator[Problem]:
    seconds, steps = reference.times.training, forecast.length.steps
    if seconds is None or not steps or seconds < LONG_SECONDS:
        return
    fitting = 10 ** math.floor(math.log10(max(DAY_SECONDS / (seconds / steps), 1.0)))
    yield Problem(
        f"{steps:,} steps at this pace: about {seconds / DAY_SECONDS:.0f} days on {_article(reference.card)}",
        f"Estimate: {reference.times.step or 0.0:.2g} s per step",
        f"Lower max_train_steps ({fitting:,} are less than a day), train_batch_size, or the clips' size and length",
        _place(config, "max_train_steps"),
        Severity.WARNING,
    )


def _share(forecast: Forecast, config: RunConfig, reference: CardForecast) -> Iterator[Problem]:
    share, count = reference.times.validation_share, forecast.length.validations
    if share <= LARGE_VALIDATION_SHARE or not reference.times.step:
        return
    if reference.times.validation_each * count < BRIEF_SECONDS:
        return  # nobody waits for that
    wanted = math.ceil(reference.times.validation_each / reference.times.step * 4 / 50) * 50
    yield Problem(
        f"validation takes about {share:.0%} of the time: {count} times {_videos(forecast)}",
        "More than a quarter is rarely worth it",
        (
            f"Raise validation_step_interval to about {wanted}, or lower"
            if wanted < (forecast.length.steps or math.inf)
            else "Lower"
        )
        + " validation_num_video_frames, or use fewer prompts",
        _place(config, "validation_step_interval"),
        Severity.WARNING,
    )


def _evaluation_share(forecast: Forecast, config: RunConfig, reference: CardForecast) -> Iterator[Problem]:
    times = reference.times
    together = (times.training or 0.0) + times.evaluation
    if not times.training or times.evaluation < BRIEF_SECONDS or times.evaluation <= LARGE_VALIDATION_SHARE * together:
        return
    clips, levels = sum(forecast.length.clips_each.values()), config.evaluation.eval_timesteps
    yield Problem(
        f"the evaluation loss takes about {times.evaluation / together:.0%} of the time: "
        f"{forecast.length.evaluations} times {counted(clips, 'clip')} at {counted(levels, 'noise level')}",
        "More than a quarter is rarely worth it",
        "Raise eval_steps_interval, or lower num_eval_images or eval_timesteps",
        _place(config, "eval_steps_interval"),
        Severity.WARNING,
    )


def _room(reference: CardForecast) -> Iterator[Problem]:
    memory = reference.memory
    if memory.verdict == "fits":
        return
    tight = memory.verdict == "tight"
    yield Problem(
        f"{memory.peak_phase} needs about {told_size(memory.peak_bytes)} on {_article(reference.card)}, which has "
        f"{told_size(memory.limit_bytes)}",
        "It may not fit" if tight else "It does not fit",
        _smaller(memory.peak_phase),
        "memory",
        Severity.NOTE if tight else Severity.WARNING,
    )


def _smaller(phase: str) -> str:
    return {
        "training": "Lower train_batch_size, the clips' frames or resolution, or set gradient_checkpointing to true",
        "encoding clips": "Set vae_enable_tiling to true, or lower the clips' frames or resolution",
        "encoding captions": "Set group_offload_text_encoder to true, or choose a smaller text_encoder_1_precision",
        "denoising videos": "Lower validation_resolution or validation_num_video_frames, or set validation_guidance 1",
        "previews": "Set validation_preview_decoder to linear",
        "decoding videos": "Set vae_enable_tiling or enable_model_cpu_offload to true, or lower validation_resolution",
    }[phase]


def _waiting(forecast: Forecast, config: RunConfig, machine: Machine) -> Iterator[Problem]:
    waiting = forecast.streaming.waiting_bytes
    if forecast.streaming.on_disk or waiting <= ROOMY_SHARE * machine.memory_bytes:
        return
    yield Problem(
        f"the streamed blocks take {told_size(waiting)} of RAM, this machine has {told_size(machine.memory_bytes)}",
        "What waits for its turn must fit beside everything else",
        "Set group_offload_to_disk_path to a folder on a fast disk, or choose a smaller base_model_precision",
        _place(config, "enable_group_offload"),
        Severity.WARNING,
    )


def _aligned_blocks(forecast: Forecast, config: RunConfig) -> Iterator[Problem]:
    if not config.crepa.crepa_enabled:
        return
    count = forecast.cost.blocks[0]
    for option in ("crepa_block_index", "crepa_teacher_block_index"):
        number = config.crepa.model_dump()[option]
        if number is not None and number >= count:
            yield Problem(
                f"{option} = {number}, but the model has {count} blocks ({forecast.cost.name})",
                f"Blocks are counted from 0, so the last one is {count - 1}",
                f"Set {option} to at most {count - 1}",
                _place(config, option),
            )


def _passes(forecast: Forecast, config: RunConfig) -> Iterator[Problem]:
    epochs = forecast.length.epochs
    if epochs is None or epochs <= MANY_EPOCHS:
        return
    yield Problem(
        f"each clip is trained about {epochs:,.0f} times",
        "A small data set is learnt by heart long before",
        "Lower max_train_steps and watch the validation videos, or add clips",
        _place(config, "max_train_steps"),
        Severity.NOTE,
    )


def _place(config: RunConfig, name: str) -> str:
    """Where an option stands; its name when nobody wrote it."""
    origin = config.origins.get(name, "default")
    return name if origin.startswith("default") else origin


def _videos(forecast: Forecast) -> str:
    count = forecast.length.videos_each
    return f"{count} video{'s' if count != 1 else ''}"


def _article(card: CardRow) -> str:
    if card.per_core:
        return f"this machine's {card.label}"
    return f"an {card.label}" if card.label.startswith(("A", "H", "L", "R")) else f"a {card.label}"
