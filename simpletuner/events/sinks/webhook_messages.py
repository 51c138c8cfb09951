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

from simpletuner.config.webhook_file import LEVELS, Webhook
from simpletuner.events.phases import PHASES
from simpletuner.events.records import Told
from simpletuner.events.sinks.scalars import evaluation_scalars
from simpletuner.events.types import (
    CheckpointSaved,
    Event,
    LossEvaluated,
    Noticed,
    PaceMeasured,
    PhaseBegan,
    PhaseEnded,
    PreviewGenerated,
    RolledBack,
    RunFinished,
    RunStarted,
    StageAdvanced,
    StageFinished,
    StageStarted,
    StepFinished,
    StepSkipped,
    StoryTold,
    TrainingBegan,
    Uploaded,
    UploadStarted,
    VideoGenerated,
)
from simpletuner.events.wording import told_duration, told_rollback, told_skip

TRAIN = "train"
STAGE_KEYS = {
    "probe": "init_data_backend",
    "latents": "init_vae_cache",
    "prompts": "init_cache_text_embeds_status_update",
    "validation": "validation",
}
# What receivers are told beside the end of a stage: these pieces of work are parts of it.
_DONE_WITH = {
    "latents": ("init_cache_vae_processing_complete", "Clips are encoded"),
    "prompts": ("validation_prompt_encoding", "Validation prompts are encoded"),
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
    """

    level: str
    body: Mapping[str, Any]
    text: str = ""
    media: tuple[Path, ...] = ()

    def is_for(self, webhook: Webhook) -> bool:
        """Whether this receiver wants to hear it."""
        if webhook.webhook_type == "discord" and not self.text:
            return False
        is_chosen = webhook.events is None or self.body["type"] in webhook.events
        return is_chosen and LEVELS.index(self.level) <= LEVELS.index(webhook.log_level)


@dataclass(frozen=True)
class _Kind:
    """What is known of the messages about a kind of event before they are composed."""

    types: tuple[str, ...]
    is_for_people: bool = True


_KINDS: Mapping[type[Event], _Kind] = {
    RunStarted: _Kind(("notification",)),
    StoryTold: _Kind(("notification",)),
    Noticed: _Kind(("notification",)),
    StageStarted: _Kind(("lifecycle.stage",), is_for_people=False),
    StageAdvanced: _Kind(("lifecycle.stage",), is_for_people=False),
    StageFinished: _Kind(("lifecycle.stage",), is_for_people=False),
    PhaseBegan: _Kind(("lifecycle.stage",), is_for_people=False),
    PhaseEnded: _Kind(("lifecycle.stage",), is_for_people=False),
    TrainingBegan: _Kind(("training.status",)),
    StepFinished: _Kind(("training.status",), is_for_people=False),
    CheckpointSaved: _Kind(("training.checkpoint",)),
    LossEvaluated: _Kind(("training.evaluation",)),
    VideoGenerated: _Kind(("training.validation",)),
    PreviewGenerated: _Kind(("validation.image",)),
    UploadStarted: _Kind(("training.status",), is_for_people=False),
    Uploaded: _Kind(("training.status",)),
    RunFinished: _Kind(("lifecycle.stage", "training.status", "error", "training.summary")),
}


def concerns(event: Event, webhook: Webhook) -> bool:
    """Whether an event gives a message that this receiver wants."""
    kind = _KINDS.get(type(event))
    if kind is None or (webhook.webhook_type == "discord" and not kind.is_for_people):
        return False
    if webhook.events is not None and not set(kind.types) & set(webhook.events):
        return False
    return LEVELS.index(_level_of(event)) <= LEVELS.index(webhook.log_level)


def _level_of(event: Event) -> str:
    if isinstance(event, Noticed):
        return _NOTICES[event.severity][0]
    return "critical" if isinstance(event, RunFinished) and event.outcome == "failed" else "info"


class Composer:
    """Makes messages; remembers what earlier events said of stages and speed."""

    def __init__(self, job_id: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        """`options` are told when the run starts; they hold no secrets."""
        self._job_id, self._options = job_id, dict(options or {})
        self._labels: dict[str, StageStarted] = {}
        self._training = TrainingBegan(0, 0, 1, 1, 0, 0, 0)
        self._seconds: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._beside = 0.0  # seconds for validation and the like that are left
        self._metrics: dict[str, Any] = {}
        self._time = ""
        self._kinds: Mapping[type[Event], Callable[[Any], list[Message]]] = {
            RunStarted: self._run_started,
            StoryTold: self._story,
            StageStarted: self._stage_started,
            StageAdvanced: self._stage_advanced,
            StageFinished: self._stage_finished,
            PhaseBegan: lambda event: [self._lifecycle(event.phase, PHASES.get(event.phase, event.phase), "running")],
            PhaseEnded: lambda event: [
                self._lifecycle(event.phase, PHASES.get(event.phase, event.phase), event.outcome)
            ],
            Noticed: self._notice,
            TrainingBegan: self._training_began,
            PaceMeasured: self._pace,
            StepFinished: self._step,
            StepSkipped: lambda event: self._warning(told_skip(event)),
            RolledBack: lambda event: self._warning(told_rollback(event)),
            CheckpointSaved: self._checkpoint,
            LossEvaluated: self._evaluation,
            VideoGenerated: self._video,
            PreviewGenerated: self._preview,
            UploadStarted: self._upload_started,
            Uploaded: self._uploaded,
            RunFinished: self._run_finished,
        }

    def compose(self, told: Told) -> list[Message]:
        """The messages of an event; none when there is nothing to say."""
        self._time = told.time
        make = self._kinds.get(type(told.event))
        return make(told.event) if make is not None else []

    def _body(self, kind: str, severity: str = "info", **fields: Any) -> dict[str, Any]:
        return {"type": kind, "severity": severity, "job_id": self._job_id, "timestamp": self._time, **fields}

    def _run_started(self, event: RunStarted) -> list[Message]:
        self._seconds.clear()
        self._beside = 0.0
        self._labels.clear()
        text = f"Run '{event.run_name}' is starting" + (" where it had stopped" if event.resumed_from else "")
        data = {"run_name": event.run_name, "output_dir": event.output_dir, "resumed_from": event.resumed_from}
        settings = "Training configuration initialised"
        return [
            Message("info", self._body("notification", title="Run started", message=text, data=data), text),
            Message("info", self._body("notification", title=settings, message=settings, data=self._options)),
        ]

    def _story(self, event: StoryTold) -> list[Message]:
        text = "\n".join((event.heading, *(f"{label}: {value}" for label, value in event.lines)))
        body = self._body("notification", title=event.heading, message=text, data=dict(event.lines))
        return [Message("info", body, text)]

    def _notice(self, event: Noticed) -> list[Message]:
        level, severity = _NOTICES[event.severity]
        return [Message(level, self._body("notification", severity, message=event.text), f"{severity}: {event.text}")]

    def _warning(self, text: str) -> list[Message]:
        return self._notice(Noticed("warning", text))

    def _stage_started(self, event: StageStarted) -> list[Message]:
        self._labels[event.stage] = event
        return [] if event.stage == TRAIN else self._stage(event.stage, "running", event.done)

    def _stage_advanced(self, event: StageAdvanced) -> list[Message]:
        return self._stage(event.stage, "running", event.done)

    def _stage_finished(self, event: StageFinished) -> list[Message]:
        if event.stage == TRAIN:
            return []
        messages = self._stage(event.stage, "completed", event.done)
        self._labels.pop(event.stage, None)
        if messages and event.stage in _DONE_WITH:
            messages.append(self._lifecycle(*_DONE_WITH[event.stage], "completed"))
        return messages

    def _stage(self, stage: str, status: str, done: int) -> list[Message]:
        begun = self._labels.get(stage)
        if begun is None:
            return []
        details = {"label": begun.label, "current": done, "total": begun.total,
                   "percent": _percent(done, begun.total), "eta_seconds": None, "metrics": {}}  # fmt: skip
        return [self._lifecycle(STAGE_KEYS.get(stage, stage), begun.label, status, details)]

    def _lifecycle(
        self, key: str, label: str, status: str, progress: Mapping[str, Any] | None = None, level: str = "info"
    ) -> Message:
        facts = {"key": key, "label": label, "status": status} | ({} if progress is None else {"progress": progress})
        severity = "error" if status == "failed" else "info"
        return Message(level, self._body("lifecycle.stage", severity, stage=facts, message=label))

    def _training_began(self, event: TrainingBegan) -> list[Message]:
        self._training = event
        data = {
            **self._position("starting", event.step, event.epoch),
            "total_num_batches": event.batches_per_epoch,
            "total_num_epochs": event.total_epochs,
            "total_num_steps": event.total_steps,
            "total_batch_size": event.samples_per_step,
            "micro_batch_size": event.batch_size,
            "remaining_num_steps": event.total_steps - event.step,
        }
        body = self._body("training.status", data=data, progress=self._progress(event.step))
        return [Message("info", body, f"Training begins: step {event.step} of {event.total_steps}")]

    def _pace(self, event: PaceMeasured) -> list[Message]:
        self._beside = event.seconds_left - event.left.get("training", 0.0)
        return []

    def _step(self, event: StepFinished) -> list[Message]:
        self._seconds.append(event.seconds)
        self._metrics = {
            "loss": _finite(event.loss),
            "learning_rate": event.learning_rate,
            "epoch": event.epoch,
            "grad_norm": _finite(event.gradient_norm),
            "effective_batch_size": event.samples,
            "total_batch_size": event.samples,
            "seconds_per_step": event.seconds,
        }
        data = self._position("running", event.step, event.epoch)
        return [Message("info", self._body("training.status", data=data, progress=self._progress(event.step)))]

    def _position(self, status: str, step: int, epoch: int) -> dict[str, Any]:
        began = self._training
        return {"status": status, "global_step": step, "current_epoch": epoch, "first_epoch": began.epoch,
                "final_epoch": began.total_epochs, "global_resume_step": began.step}  # fmt: skip

    def _progress(self, step: int) -> dict[str, Any]:
        total = self._training.total_steps
        steps_left = max(total - step, 0)
        left = steps_left * sum(self._seconds) / len(self._seconds) + self._beside if self._seconds else None
        return {"label": "Training", "current": step, "total": total, "percent": _percent(step, total),
                "eta_seconds": left, "metrics": dict(self._metrics)}  # fmt: skip

    def _checkpoint(self, event: CheckpointSaved) -> list[Message]:
        is_final = event.step >= self._training.total_steps > 0
        facts = {"path": event.path, "label": Path(event.path).name, "is_final": is_final}
        text = f"Checkpoint of step {event.step}: {event.path}"
        return [Message("info", self._body("training.checkpoint", "success", checkpoint=facts, message=text), text)]

    def _evaluation(self, event: LossEvaluated) -> list[Message]:
        data = {
            "step": event.step,
            "weights": event.weights,
            "metrics": {name: _finite(value) for name, value in evaluation_scalars(event).items()},
            "is_best": event.is_best,
            "best_step": event.best_step,
            "best_loss": _finite(event.best_loss),
        }
        best = "the lowest so far" if event.is_best else f"lowest {event.best_loss:.4f} at step {event.best_step}"
        text = f"Loss on clips set apart after step {event.step} ({event.weights}): {event.loss:.4f}"
        text += f", {best}" if event.decides else ""
        return [Message("info", self._body("training.evaluation", message=text, data=data), text)]

    def _video(self, event: VideoGenerated) -> list[Message]:
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
        return [Message("info", self._body("training.validation", message=title, data=data), text, media)]

    def _preview(self, event: PreviewGenerated) -> list[Message]:
        label = f"step {event.inference_step}/{event.inference_steps}"
        title = f"Validation ({label}): {event.nickname}"
        data = {
            "step": event.inference_step,
            "timestep": 1000 * event.sigma,
            "resolution": [event.width, event.height],
            "validation_type": event.weights,
            "prompt": event.prompt,
            "step_label": label,
            "global_step": event.step,
        }
        body = self._body("validation.image", title=title, message=title, body=event.prompt, data=data)
        return [Message("info", body, title, (Path(event.path),))]

    def _upload_started(self, event: UploadStarted) -> list[Message]:
        data = {"status": "uploading_model", "what": event.what, "target": event.target}
        text = f"Uploading {event.what} to {event.target}"
        return [Message("info", self._body("training.status", data=data, message=text))]

    def _uploaded(self, event: Uploaded) -> list[Message]:
        text = f"Uploaded {event.what} to {event.address} in {told_duration(event.seconds)}"
        data = {"status": "model_available", "what": event.what, "address": event.address}
        return [Message("info", self._body("training.status", "success", data=data, message=text), text)]

    def _run_finished(self, event: RunFinished) -> list[Message]:
        text = f"{event.outcome.capitalize()} after step {event.step}" + (f"\n{event.detail}" if event.detail else "")
        level = _level_of(event)
        summary = {"outcome": event.outcome, "global_step": event.step, "metrics": dict(self._metrics)}
        severity = {"finished": "success", "stopped": "warning"}.get(event.outcome, "critical")
        end = Message(level, self._body("training.summary", severity, data=summary, message=text.split("\n")[0]))
        if event.outcome == "failed":
            data = {"status": "training_failed", "global_step": event.step, "error": event.detail}
            status = self._body("training.status", severity, data=data, progress=self._progress(event.step))
            error = self._body("error", severity, title="Run failed", message=text, data=data)
            broken = [
                self._lifecycle(STAGE_KEYS.get(stage, stage), begun.label, "failed", level=level)
                for stage, begun in self._labels.items()
                if stage != TRAIN
            ]
            return [*broken, Message(level, status), Message(level, error, text), end]
        stage = {
            "key": "training_complete" if event.outcome == "finished" else "training_abort",
            "label": event.outcome.capitalize(),
            "status": "completed",
            "progress": self._progress(event.step),
        }
        return [Message(level, self._body("lifecycle.stage", severity, stage=stage, message=text), text), end]


def _percent(done: int, total: int) -> float:
    return round(100 * done / total, 2) if total > 0 else 0.0


def _finite(number: float) -> float | None:
    return number if number - number == 0 else None  # inf - inf and nan - nan are nan
