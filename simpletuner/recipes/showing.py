"""The videos of a run: which weights are shown, when some are missing, and the base model beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from simpletuner.caching.fingerprint import fingerprint
from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.run_config import RunConfig
from simpletuner.core.files import write_json_atomic
from simpletuner.events.phases import phase
from simpletuner.events.types import Noticed
from simpletuner.events.wording import told_size
from simpletuner.models.family import Autoencoder
from simpletuner.recipes.probing import forecast_of, tell_measured
from simpletuner.recipes.session import Session
from simpletuner.runtime.host import release_memory
from simpletuner.validation.gallery import write_gallery
from simpletuner.validation.generate import Studio, VideoJob, generate_videos, plan_jobs
from simpletuner.validation.names import VIDEO_FOLDER, Weights
from simpletuner.validation.rehearsal import rehearse_largest
from simpletuner.validation.visiting import LonelyAutoencoder, VisitingAutoencoder

# Options that change what a video of the base model shows; all others leave it as it is.
_SHAPING: Final = (
    "validation_negative_prompt", "validation_num_video_frames", "validation_num_inference_steps",
    "validation_guidance", "validation_guidance_rescale", "validation_seed_source",
)  # fmt: skip


def shown_weights(config: RunConfig) -> tuple[Weights, ...]:
    """Which weights validation shows: trained, averaged, or both."""
    if not config.average.use_ema:
        return ("adapter",)
    shown: dict[str, tuple[Weights, ...]] = {
        "none": ("adapter",), "ema_only": ("ema",), "comparison": ("adapter", "ema")
    }  # fmt: skip
    return shown[config.average.ema_validation]


def shows_videos(config: RunConfig) -> bool:
    """Whether the run generates any video."""
    return bool(config.prompts) and config.validation.makes_videos


def validate_trained(session: Session, stop: Callable[[], bool] = lambda: False) -> None:
    """Generate the validation videos of the run as it is now."""
    if not shows_videos(session.config):
        return
    for weights in shown_weights(session.config):
        if shows_plain(session) and not stop():
            validate(session, weights, jobs_of(session, weights), stop)
        for name, visiting in session.further:
            if not stop():
                with visiting.worn(session.trainable.transformer):
                    validate(session, weights, jobs_of(session, weights, name), stop)
    write_gallery(session.folder, title=session.config.reporting.tracker_run_name)


def validate(
    session: Session, weights: Weights, jobs: Sequence[VideoJob], stop: Callable[[], bool] = lambda: False
) -> None:
    """Generate these videos with these weights; a failure never stops training."""
    generate_videos(
        _studio(session, stop),
        session.state.wearing,
        lambda: _autoencoder(session),
        jobs,
        step=0 if weights == "base" else session.state.step,
        weights=weights,
        emit=session.run.emit,
    )
    release_memory()


def shows_plain(session: Session) -> bool:
    """Whether the trained weights are shown without further adapters."""
    return not session.further or session.config.validation.validation_adapter_mode == "comparison"


def jobs_of(session: Session, weights: Weights, further: str = "") -> list[VideoJob]:
    """Every video of the run as it is now with these weights, and with the further adapter of this name."""
    config, step = session.config, 0 if weights == "base" else session.state.step
    prompts = config.prompts
    if further:
        prompts = tuple(replace(prompt, nickname=f"{prompt.nickname}_with_{further}") for prompt in prompts)
    return plan_jobs(prompts, config.validation, step, weights, session.folder / VIDEO_FOLDER)


def has_videos(session: Session, weights: Weights) -> bool:
    """Whether every video of these weights at this step exists."""
    if not shows_videos(session.config):
        return True
    names = ([""] if shows_plain(session) else []) + [name for name, _ in session.further]
    return all(job.path.exists() for name in names for job in jobs_of(session, weights, name))


def rehearse(session: Session) -> None:
    """Before training, prove that the largest video fits into the device's memory beside what training needs.

    On a CPU the memory is the machine's, which can be lent from the disk: nothing is proved there, but what the video
    takes is told beside its forecast, unless memory_probe is off.

    Raises:
        UserError: If it does not fit.
    """
    config, host = session.config, session.host
    if not shows_videos(config) or host.device.type == "mps":
        return
    if host.device.type == "cpu" and not config.memory.memory_probe:
        return
    # The states come with the first step; until then their place is kept free.
    states = OPTIMIZERS[config.optimizer.optimizer].state_bytes * session.trainable.trained_count
    found = rehearse_largest(
        _studio(session, lambda: False), session.state.wearing, shown_weights(config)[-1],
        lambda: _autoencoder(session), config.prompts, host.device, int(states), session.trainable.held_tensors(),
    )  # fmt: skip
    told = f"{found.width}x{found.height} with {found.num_frames} frames"
    forecast = forecast_of(config, session.plan, host)
    for what, measured in (
        ("denoising videos", found.denoising_bytes),
        ("decoding videos", found.decoding_bytes),
    ):
        tell_measured(what, f"a video of {told}", measured, forecast, host, session.run.emit)
    if host.device.type == "cpu":
        return
    session.run.emit(
        Noticed(
            "note",
            f"validation videos of {told} fit: {told_size(found.denoising_bytes)} while denoising, "
            f"{told_size(found.decoding_bytes)} while decoding, of {told_size(host.memory_bytes)}",
        )
    )


def generate_base_videos(session: Session) -> None:
    """Generate the base model's videos that are missing, or whose prompt, settings or model have changed since."""
    if not shows_videos(session.config):
        return
    record = session.folder / VIDEO_FOLDER / "base.json"
    jobs = jobs_of(session, "base")
    facts = {job.path.name: _base_facts(session, job) for job in jobs}
    known = _read_record(record)
    wanted = [job for job in jobs if not (job.path.exists() and known.get(job.path.name) == facts[job.path.name])]
    if not wanted:
        return
    if session.state.step and not session.trainable.adapter.keeps_base:
        told = "the base model's videos are not made: its own weights have been trained since (model_type full)"
        session.run.emit(Noticed("note", told))
        return
    for job in wanted:
        job.path.unlink(missing_ok=True)  # of another prompt or model; it must not be taken for this one's
    with phase("benchmark_base_model", session.run.emit):
        validate(session, "base", wanted)
    write_json_atomic(record, {**known, **{job.path.name: facts[job.path.name] for job in wanted if job.path.exists()}})


def _studio(session: Session, stop: Callable[[], bool]) -> Studio:
    config, plan = session.config, session.plan
    return Studio(
        transformer=session.trainable.transformer,
        family=plan.family,
        source=plan.source,
        prompts=session.prompts,
        settings=config.validation,
        frame_rate=config.data.framerate or FAMILIES[str(config.model.model_family)].frame_rate,
        model={"release": plan.source.release, "run": config.reporting.tracker_run_name},
        previewer=session.previewer,
        stop=stop,
    )


def _autoencoder(session: Session) -> Autoencoder:
    """The run's autoencoder; unless it is to stay loaded, only for the time in which it works.

    With enable_model_cpu_offload it never shares the device with the frozen transformer, not even while it is loaded.
    """
    device = session.host.device
    if device.type == "cpu":
        return session.autoencoders()
    if session.config.caching.keep_vae_loaded:
        autoencoder: Autoencoder = session.autoencoders()
    else:
        autoencoder = VisitingAutoencoder(session.autoencoders(torch.device("cpu")), device)
    return autoencoder if session.absence is None else LonelyAutoencoder(autoencoder, session.absence)


def _base_facts(session: Session, job: VideoJob) -> str:
    config, source = session.config, session.plan.source
    picture = Path(job.prompt.image).stat() if job.prompt.image and Path(job.prompt.image).is_file() else None
    return fingerprint(
        {
            "model": {part: source.identity(part) for part in ("transformer", "autoencoder", "text")},
            "prompt": job.prompt.prompt,
            "image": [job.prompt.image, *([picture.st_size, picture.st_mtime_ns] if picture else [])],
            "size": [job.width, job.height],
            "seed": job.seed,
            "settings": {name: getattr(config.validation, name) for name in _SHAPING},
            "beside": config.validation.validation_stitch_input_location if job.prompt.image else "none",
            "frame_rate": config.data.framerate,
            "precision": config.precision.model_dump(mode="json"),
            "token_length": config.model.tokenizer_max_length,
        }
    )


def _read_record(path: Path) -> dict[str, Any]:
    """File name -> facts of the base model's videos as they were made."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
