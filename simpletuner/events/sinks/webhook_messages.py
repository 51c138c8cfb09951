"""Events as the messages a webhook carries: the fields of a raw event, and a line for people.

Pure: from events to plain values, no network and no files. The kinds of messages and their fields are
those of the raw interface which existing receivers know; step, prompt and size of a video are added.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.config.webhook_file import LEVELS
from simpletuner.events.sinks.journal import utc_now
from simpletuner.events.types import (
    CheckpointSaved,
    Event,
    Noticed,
    RunFinished,
    RunStarted,
    StageAdvanced,
    StageFinished,
    StageStarted,
    StepFinished,
    StoryTold,
    Uploaded,
    VideoGenerated,
)
from simpletuner.events.wording import told_duration

TRAIN = "train"
STAGE_KEYS = {
    "probe": "init_data_backend",
    "latents": "init_vae_cache",
    "prompts": "init_cache_text_embeds_status_update",
    "validation": "validation",
}
_RATE_WINDOW = 20  # steps in the mean behind the time left
_NOTICES = {"note": ("info", "info"), "warning": ("warning", "warning"), "error": ("error", "error")}


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        level: One of `LEVELS`; receivers choose up to which they want to hear.
        body: The raw event without media.
        text: The same for people; empty when a chat is not told.
        media: Files that go with it, a poster after its video.
        is_progress: Whether a later message says the same anew, so that this one may be missed.
    """

    level: str
    body: Mapping[str, Any]
    text: str = ""
    media: tuple[Path, ...] = ()
    is_progress: bool = False

    def is_wanted(self, log_level: str) -> bool:
        """Whether a receiver with this `log_level` hears of it."""
        return LEVELS.index(self.level) <= LEVELS.index(log_level)


class Composer:
    """Turns the events of one run, in order, into messages."""

    def __init__(self, job_id: str | None = None) -> None:
        """`job_id` is the receiver's own name for the run; most runs have none."""
        self._job_id = job_id
        self._total = 0
        self._labels: dict[str, StageStarted] = {}
        self._seconds: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._kinds: Mapping[type[Event], Callable[[Any], Message | None]] = {
            RunStarted: self._run_started,
            StoryTold: self._story,
            StageStarted: self._stage_started,
            StageAdvanced: self._stage_advanced,
            StageFinished: self._stage_finished,
            Noticed: self._notice,
            StepFinished: self._step,
            CheckpointSaved: self._checkpoint,
            VideoGenerated: self._video,
            Uploaded: self._uploaded,
            RunFinished: self._run_finished,
        }

    def compose(self, event: Event) -> Message | None:
        """The message of an event; None when there is nothing to say."""
        make = self._kinds.get(type(event))
        return make(event) if make is not None else None

    def _body(self, kind: str, severity: str = "info", **fields: Any) -> dict[str, Any]:
        return {"type": kind, "severity": severity, "job_id": self._job_id, "timestamp": utc_now(), **fields}

    def _run_started(self, event: RunStarted) -> Message:
        text = f"Run '{event.run_name}' is starting" + (" where it had stopped" if event.resumed_from else "")
        data = {"run_name": event.run_name, "output_dir": event.output_dir, "resumed_from": event.resumed_from}
        return Message("info", self._body("notification", title="Run started", message=text, data=data), text)

    def _story(self, event: StoryTold) -> Message:
        text = "\n".join((event.heading, *(f"{label}: {value}" for label, value in event.lines)))
        body = self._body("notification", title=event.heading, message=text, data=dict(event.lines))
        return Message("info", body, text)

    def _notice(self, event: Noticed) -> Message:
        level, severity = _NOTICES[event.severity]
        return Message(level, self._body("notification", severity, message=event.text), f"{severity}: {event.text}")

    def _stage_started(self, event: StageStarted) -> Message:
        self._labels[event.stage] = event
        if event.stage != TRAIN:
            return self._stage(event.stage, "running", event.done, is_progress=False)
        self._total = event.total
        data = {"status": "starting", "global_resume_step": event.done, "total_num_steps": event.total,
                "remaining_num_steps": event.total - event.done}  # fmt: skip
        body = self._body("training.status", data=data, progress=self._progress(event.done, {}))
        return Message("info", body, f"Training begins: step {event.done} of {event.total}")

    def _stage_advanced(self, event: StageAdvanced) -> Message | None:
        if event.stage not in self._labels:
            return None
        return self._stage(event.stage, "running", event.done, is_progress=True)

    def _stage_finished(self, event: StageFinished) -> Message | None:
        if event.stage == TRAIN or event.stage not in self._labels:
            return None
        return self._stage(event.stage, "completed", event.done, is_progress=False)

    def _stage(self, stage: str, status: str, done: int, *, is_progress: bool) -> Message:
        begun = self._labels[stage]
        details = {"label": begun.label, "current": done, "total": begun.total,
                   "percent": _percent(done, begun.total), "eta_seconds": None, "metrics": {}}  # fmt: skip
        facts = {"key": STAGE_KEYS.get(stage, stage), "label": begun.label, "status": status, "progress": details}
        return Message("info", self._body("lifecycle.stage", stage=facts, message=begun.label), is_progress=is_progress)

    def _step(self, event: StepFinished) -> Message:
        self._seconds.append(event.seconds)
        metrics = {
            "loss": _finite(event.loss),
            "learning_rate": event.learning_rate,
            "epoch": event.epoch,
            "grad_norm": _finite(event.gradient_norm),
            "effective_batch_size": event.samples,
            "seconds_per_step": event.seconds,
        }
        data = {"status": "running", "global_step": event.step, "current_epoch": event.epoch}
        body = self._body("training.status", data=data, progress=self._progress(event.step, metrics))
        return Message("info", body, is_progress=True)

    def _progress(self, step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        left = max(self._total - step, 0) * sum(self._seconds) / len(self._seconds) if self._seconds else None
        return {"label": "Training", "current": step, "total": self._total, "percent": _percent(step, self._total),
                "eta_seconds": left, "metrics": dict(metrics)}  # fmt: skip

    def _checkpoint(self, event: CheckpointSaved) -> Message:
        facts = {"path": event.path, "label": Path(event.path).name, "is_final": event.step >= self._total > 0}
        text = f"Checkpoint of step {event.step}: {event.path}"
        return Message("info", self._body("training.checkpoint", "success", checkpoint=facts, message=text), text)

    def _video(self, event: VideoGenerated) -> Message:
        title = f"Validation: {event.nickname}"
        data = {
            "step": event.step,
            "weights": event.weights,
            "prompt": event.prompt,
            "resolution": [event.width, event.height],
            "num_frames": event.num_frames,
            "frame_rate": event.frame_rate,
            "seed": event.seed,
            "path": event.path,
        }
        path = Path(event.path)
        media = (path,) if path.suffix == ".png" else (path, path.with_suffix(".png"))
        told = "the base model" if event.weights == "base" else f"step {event.step}"
        text = f"{title} ({event.width}x{event.height}, {told})\n{event.prompt}"
        return Message("info", self._body("training.validation", message=title, data=data), text, media)

    def _uploaded(self, event: Uploaded) -> Message:
        text = f"Uploaded {event.what} to {event.address} in {told_duration(event.seconds)}"
        data = {"status": "model_available", "what": event.what, "address": event.address}
        return Message("info", self._body("training.status", "success", data=data, message=text), text)

    def _run_finished(self, event: RunFinished) -> Message:
        text = f"{event.outcome.capitalize()} after step {event.step}" + (f"\n{event.detail}" if event.detail else "")
        if event.outcome == "failed":
            data = {"status": "training_failed", "global_step": event.step, "error": event.detail}
            return Message("critical", self._body("error", "critical", title="Run failed", message=text, data=data),
                           text)  # fmt: skip
        is_whole = event.outcome == "finished"
        stage = {
            "key": "training_complete" if is_whole else "training_abort",
            "label": event.outcome.capitalize(),
            "status": "completed",
            "progress": self._progress(event.step, {}),
        }
        severity = "success" if is_whole else "warning"
        return Message("info", self._body("lifecycle.stage", severity, stage=stage, message=text), text)


def _percent(done: int, total: int) -> float:
    return round(100 * done / total, 2) if total > 0 else 0.0


def _finite(number: float) -> float | None:
    return number if number - number == 0 else None  # inf - inf and nan - nan are nan
