"""The videos of a run: which weights are shown, when some are missing, and the base model beside them."""

from __future__ import annotations

import json

from simpletuner.caching.fingerprint import fingerprint
from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.run_config import RunConfig
from simpletuner.core.files import write_json_atomic
from simpletuner.events.types import Noticed
from simpletuner.recipes.session import Session
from simpletuner.runtime.host import release_memory
from simpletuner.validation.generate import VIDEO_FOLDER, Weights, generate_videos, video_name


def shown_weights(config: RunConfig) -> tuple[Weights, ...]:
    """Which weights validation shows: trained, averaged, or both."""
    if not config.average.use_ema:
        return ("adapter",)
    shown: dict[str, tuple[Weights, ...]] = {
        "none": ("adapter",), "ema_only": ("ema",), "comparison": ("adapter", "ema")
    }  # fmt: skip
    return shown[config.average.ema_validation]


def validate_trained(session: Session) -> None:
    """Generate the validation videos of the run as it is now."""
    for weights in shown_weights(session.config):
        validate(session, weights)


def validate(session: Session, weights: Weights) -> None:
    """Generate the validation videos with these weights; a failure never stops training."""
    config, plan = session.config, session.plan
    if config.validation.validation_disable or not config.prompts:
        return
    generate_videos(
        session.trainable.transformer,
        session.state.wearing,
        plan.family,
        plan.source,
        session.autoencoders,
        session.prompts,
        config.prompts,
        config.validation,
        step=session.state.step,
        weights=weights,
        frame_rate=config.data.framerate or FAMILIES[str(config.model.model_family)].frame_rate,
        folder=session.folder / VIDEO_FOLDER,
        emit=session.run.emit,
    )
    release_memory(session.host.device)


def has_videos(session: Session, weights: Weights) -> bool:
    """Whether every video of these weights at this step exists."""
    settings, folder = session.config.validation, session.folder / VIDEO_FOLDER
    step = 0 if weights == "base" else session.state.step
    return all(
        (folder / video_name(step, weights, prompt.nickname, width, height, settings.num_frames)).exists()
        for prompt in session.config.prompts
        for width, height in settings.resolutions
    )


def generate_base_videos(session: Session) -> None:
    """Generate the base model's videos once; again when prompts, settings or the model have changed."""
    facts = fingerprint(
        {
            "model": {part: session.plan.source.identity(part) for part in ("transformer", "autoencoder", "text")},
            "prompts": [(entry.nickname, entry.prompt, entry.image) for entry in session.config.prompts],
            "settings": session.config.validation.model_dump(mode="json"),
            "frame_rate": session.config.data.framerate,
            "precision": session.config.precision.model_dump(mode="json"),
            "token_length": session.config.model.tokenizer_max_length,
        }
    )
    record = session.folder / VIDEO_FOLDER / "base.json"
    if record.exists() and json.loads(record.read_text()) == facts and has_videos(session, "base"):
        return
    if session.state.step and not session.trainable.adapter.keeps_base:
        told = "the base model's videos are not made: its own weights have been trained since (model_type full)"
        session.run.emit(Noticed("note", told))
        return
    validate(session, "base")
    if has_videos(session, "base"):
        write_json_atomic(record, facts)
