"""The numbers of a step under the names that trackers show. Pure."""

from __future__ import annotations

import re
from pathlib import Path

from simpletuner.events.types import Event, LossEvaluated, RunStarted, StepFinished, VideoGenerated

_BANDS = 4  # as in training's own loss


def event_scalars(event: Event) -> dict[str, float]:
    """Name -> number of an event that has a step; empty for events without numbers."""
    if isinstance(event, StepFinished):
        return step_scalars(event)
    if isinstance(event, LossEvaluated):
        return evaluation_scalars(event)
    if isinstance(event, VideoGenerated):
        return {f"measures/{video_title(event)}/{name}": value for name, value in event.measures.items()}
    return {}


def step_scalars(event: StepFinished) -> dict[str, float]:
    """Name -> number of one optimizer step; terms of the loss stand under "loss/"."""
    scalars = {
        "train_loss": event.loss,
        "learning_rate": event.learning_rate,
        "epoch": float(event.epoch),
        "grad_norm": event.gradient_norm,
        "seconds_per_step": event.seconds,
        "samples_per_second": event.samples / event.seconds if event.seconds > 0 else 0.0,
    }
    if event.memory_bytes:
        scalars["memory_gigabytes"] = event.memory_bytes / 1e9
    return scalars | {f"loss/{name}": value for name, value in event.terms.items()}


def evaluation_scalars(event: LossEvaluated) -> dict[str, float]:
    """Name -> number of one measurement: "loss/val" and "loss/val/<set>", those of averaged weights under another
    word; and the mean in four bands of noise levels."""
    word = "loss/val" if event.weights == "adapter" else f"loss/val_{event.weights}"
    bands: dict[int, list[float]] = {}
    for values in event.by_level.values():
        for sigma, value in zip(event.sigmas, values, strict=True):
            bands.setdefault(min(int(sigma * _BANDS), _BANDS - 1), []).append(value)
    return {
        word: event.loss,
        **{f"{word}/{name}": value for name, value in event.losses.items()},
        **{
            f"{word}_sigma_{band / _BANDS:.2f}-{(band + 1) / _BANDS:.2f}": sum(values) / len(values)
            for band, values in sorted(bands.items())
        },
    }


def video_title(event: VideoGenerated) -> str:
    """Under which name a validation video is followed over the steps."""
    weights = "" if event.weights == "adapter" else f" ({event.weights})"
    number = f" #{event.number}" if event.number > 1 else ""
    return f"{event.nickname} - {event.width}x{event.height}{number}{weights}"


def resumed_step(event: RunStarted) -> int:
    """The step after which a run goes on; 0 for a fresh one."""
    found = re.fullmatch(r"checkpoint-(\d+)", Path(event.resumed_from).name)
    return int(found.group(1)) if found else 0
