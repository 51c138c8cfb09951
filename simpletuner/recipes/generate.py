"""Videos from a model and its adapters, without training: prompts encoded, model built, videos made and written.

What is sampled is what was trained: the base is loaded as for training, adapters compute as they did there, and the
videos come from the function that makes those of the validation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simpletuner.caching.fingerprint import encoder_identity
from simpletuner.caching.prompts import PromptCache, PromptSettings, cache_prompts
from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.generation import FAMILY
from simpletuner.core.counting import counted
from simpletuner.core.errors import Severity, UserError
from simpletuner.events.types import (
    Event,
    Noticed,
    StageFinished,
    StageStarted,
    StoryTold,
    VideoGenerated,
)
from simpletuner.models.adapters.applied import AppliedAdapters, refuse_misfits
from simpletuner.models.adapters.lora_file import read_lora_file
from simpletuner.models.family import Autoencoder, ModelFamily, Source
from simpletuner.recipes.encode import DTYPES
from simpletuner.recipes.generation_order import GenerationOrder
from simpletuner.recipes.model_in_use import use_model
from simpletuner.runtime.host import Host, find_host, release_memory
from simpletuner.validation.first_frame import read_first_frame
from simpletuner.validation.generate import (
    GENERATION_FAULTS,
    STAGE,
    Studio,
    VideoJob,
    make_video,
    reason_of,
)
from simpletuner.validation.names import Weights


def generate_order(order: GenerationOrder, emit: Callable[[Event], None]) -> list[VideoGenerated]:
    """Make every video of the order.

    Args:
        order: What `generation_order.read_order` gave.
        emit: Receives the story, progress, a `VideoGenerated` per file, and an error notice per failure.

    Raises:
        UserError: If model, adapters or pictures cannot be used; if the disk fills up (exit code 6); or, after all
            others were made, if videos failed.
    """
    host = find_host()
    family: ModelFamily = FAMILIES.load(FAMILY)
    for notice in order.notices:
        emit(Noticed("warning" if notice.severity is Severity.WARNING else "note", str(notice)))
    source = family.resolve(order.settings.model)
    _prove_fit(order, family, source)
    prompts = _encode_prompts(order, family, source, host, emit)
    settings = order.settings
    with use_model(family, source, settings, order.adapters, host) as model:
        _tell(order, source, model.applied, host, emit)
        autoencoder = family.load_autoencoder(
            source, DTYPES[settings.precision.vae_dtype], host.device, tiling=settings.tiling
        )
        studio = Studio(
            model.transformer, family, source, prompts, settings.validation, settings.frame_rate,
            _model_facts(order, source),
        )  # fmt: skip
        made, failed = _make_all(order, studio, autoencoder, host, emit)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(order.pieces)} videos could not be made; the first is {failed[0]}",
            "The others are complete",
            "Lower --width, --height or --frames if memory is short; vae_enable_tiling=true and base_model_precision "
            "need less",
        )
    return made


def _make_all(
    order: GenerationOrder, studio: Studio, autoencoder: Autoencoder, host: Host, emit: Callable[[Event], None]
) -> tuple[list[VideoGenerated], list[str]]:
    """The videos that were made, and what was wrong with the others."""
    weights: Weights = "adapter" if order.adapters else "base"
    steps = (file.metadata.get("global_step", "") for file in order.adapters)
    trained = max((int(step) for step in steps if step.isdecimal()), default=0)
    total, started = len(order.pieces) * studio.settings.validation_num_inference_steps, time.monotonic()
    emit(StageStarted(STAGE, "Generating videos", total, "steps"))
    made: list[VideoGenerated] = []
    failed: list[str] = []
    for number, piece in enumerate(order.pieces):
        job = VideoJob(piece.prompt, piece.width, piece.height, piece.seed, piece.path)
        try:
            event = make_video(studio, autoencoder, job, number, step=trained, weights=weights, emit=emit)
        except GENERATION_FAULTS as error:
            failed.append(f"'{piece.path.name}': {reason_of(error)}")
            emit(Noticed("error", f"no video {failed[-1]}"))
            release_memory()
            continue
        made.append(event)
        emit(event)
    emit(StageFinished(STAGE, total, time.monotonic() - started, counted(len(made), "video")))
    return made, failed


def _prove_fit(order: GenerationOrder, family: ModelFamily, source: Source) -> None:
    """Before minutes are spent: pictures can be read, and LoRAs belong to this transformer.

    Raises:
        UserError: If not.
    """
    for piece in order.pieces:
        if piece.prompt.image:
            read_first_frame(Path(piece.prompt.image), piece.width, piece.height)
    loras = [(file, read_lora_file(file.path, family)) for file in order.adapters if file.kind == "lora"]
    if loras:
        refuse_misfits(family.empty_transformer(source), loras)


def _encode_prompts(
    order: GenerationOrder, family: ModelFamily, source: Source, host: Host, emit: Callable[[Event], None]
) -> PromptCache:
    model, precision = order.settings.model, order.settings.precision
    dtype = DTYPES[precision.mixed_precision]
    settings = PromptSettings(
        folder=order.text_cache,
        identity=encoder_identity(
            source.identity("text"), dtype=str(dtype), precision=precision.text_encoder_1_precision
        ),
        token_length=model.tokenizer_max_length,
        shared=True,
    )
    texts = {piece.prompt.prompt for piece in order.pieces} | {order.settings.validation.validation_negative_prompt}

    def load() -> Any:
        return family.load_prompt_encoder(
            source, dtype, host.device, precision=precision.text_encoder_1_precision,
            streamed=order.settings.memory.group_offload_text_encoder,
        )  # fmt: skip

    prompts = cache_prompts(sorted(texts), settings, load, emit=emit)
    release_memory()
    return prompts


def _tell(
    order: GenerationOrder, source: Source, applied: AppliedAdapters, host: Host, emit: Callable[[Event], None]
) -> None:
    """The story before the first video."""
    form, first = order.settings.validation, order.pieces[0]
    told = zip(order.adapters, applied.lines, strict=True)
    lines = [
        *source.describe(),
        *(("weights" if file.kind == "whole" else "adapter", line) for file, line in told),
        ("computed on", host.device_name),
        (
            "videos",
            f"{len(order.pieces)} of {first.width}x{first.height}, {form.num_frames} frames at "
            f"{order.settings.frame_rate:g} fps, {form.validation_num_inference_steps} steps, "
            f"guidance {form.validation_guidance:g}",
        ),
    ]
    emit(StoryTold("Generating", tuple(lines)))
    for file in order.adapters:
        release = file.metadata.get("base_release")
        if release and release != source.release:
            emit(
                Noticed(
                    "warning", f"'{file.path.name}' was trained on LTX-Video {release}; the model is {source.release}"
                )
            )


def _model_facts(order: GenerationOrder, source: Source) -> dict[str, Any]:
    """What a video's file says of the model that made it."""
    model = order.settings.model
    return {
        "program": "simpletuner generate",
        "release": source.release,
        **({"model": model.pretrained_model_name_or_path} if model.pretrained_model_name_or_path else {}),
        "precision": order.settings.precision.base_model_precision,
        "adapters": [{"file": file.path.name, "strength": file.strength} for file in order.adapters],
    }
