"""Weights & Biases: curves, settings and validation videos.

One W&B run per run, also over resumes: its id stands in `wandb_run.json` in the run folder. Without a
login the run is recorded offline and can be sent later; WANDB_MODE and the library's other variables
are its own affair. Everything happens on a thread of its own, the slow first contact too.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simpletuner.core.files import write_json_atomic
from simpletuner.events.outbox import Outbox
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.scalars import step_scalars, video_title
from simpletuner.events.types import Event, Noticed, RunFinished, RunStarted, StepFinished, VideoGenerated

if TYPE_CHECKING:
    from wandb import Run

RUN_FILE = "wandb_run.json"
ROOM = 10_000
_SECONDS_AT_END = 300.0  # videos may still be on their way; whoever does not want to wait presses Ctrl-C
_INIT_SECONDS = 60


class WandbSink:
    """Records the run for Weights & Biases."""

    def __init__(self, context: SinkContext) -> None:
        self._context = context
        self._run: Run | None = None
        self._outcome = "failed"
        self._last_step = 0
        self._record: dict[str, Any] = {}
        self._outbox: Outbox[Event] = Outbox(
            "wandb", self._deliver, self._tell_fault, finish=self._finish, room=ROOM,
            may_be_missed=lambda event: isinstance(event, StepFinished),
        )  # fmt: skip

    def receive(self, event: Event, sequence: int) -> None:
        if isinstance(event, (RunStarted, StepFinished, VideoGenerated)):
            self._outbox.put(event)
        elif isinstance(event, RunFinished):
            self._outcome = event.outcome

    def close(self) -> None:
        try:
            is_whole = self._outbox.close(_SECONDS_AT_END)
        except KeyboardInterrupt:
            is_whole = self._outbox.abandon()
        if not is_whole:
            folders = f"{self._folder / 'wandb'}/*run-*"
            self._tell("warning", f"W&B has not got everything; send the rest with: wandb sync {folders}")

    @property
    def _folder(self) -> Path:
        return (self._context.folder / self._context.reporting.logging_dir).resolve()

    def _deliver(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._open(event)
        elif self._run is None:
            return
        elif isinstance(event, StepFinished):
            # A resumed run repeats steps that W&B has: with equal numbers, and it takes no step twice.
            if event.step > self._last_step:
                self._last_step = event.step
                self._run.log(step_scalars(event), step=event.step)
        elif isinstance(event, VideoGenerated) and Path(event.path).is_file():
            self._run.log({video_title(event): _media(event)}, step=max(event.step, self._last_step))

    def _open(self, event: RunStarted) -> None:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        mode: Literal["offline"] | None = None
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            mode = "offline"
        self._record = _record(self._context.folder, is_new=not event.resumed_from)
        self._run = wandb.init(
            project=self._context.reporting.tracker_project_name,
            name=event.run_name,
            id=self._record["id"],
            resume="allow",
            dir=str(self._folder),
            mode=mode,
            config=self._context.options(),
            # The terminal belongs to this program, and a run's output may hold what is nobody's business.
            settings=wandb.Settings(console="off", silent=True, init_timeout=_INIT_SECONDS),
        )
        # Online, W&B knows better than a file that a kill may have left behind.
        self._last_step = max(self._record["last_step"], self._run.step - 1)
        if self._run.settings.mode == "offline":
            sync = f"wandb sync {Path(self._run.dir).parent}"
            why = "nobody is logged in to W&B (`wandb login`)" if mode else "WANDB_MODE says offline"
            self._tell("note", f"{why}: the run is recorded here; send it later with: {sync}")
        elif self._run.settings.mode == "online":
            self._tell("note", f"W&B shows this run at {self._run.url}")

    def _finish(self) -> None:
        if self._run is not None:
            write_json_atomic(self._context.folder / RUN_FILE, {**self._record, "last_step": self._last_step})
            self._run.finish(exit_code=1 if self._outcome == "failed" else 0)

    def _tell(self, severity: Literal["note", "warning"], text: str) -> None:
        self._context.emit(Noticed(severity, text))

    def _tell_fault(self, error: BaseException) -> None:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self._tell("warning", f"the sink 'wandb' failed and is switched off for this run: {first}")


def _record(folder: Path, *, is_new: bool) -> dict[str, Any]:
    """The W&B id of the run in `folder` and the last step it has; a fresh start gets an id of its own."""
    path = folder / RUN_FILE
    if not is_new:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {"id": str(found["id"]), "last_step": int(found["last_step"])}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # the run began without W&B
    record = {"id": uuid.uuid4().hex[:12], "last_step": 0}
    write_json_atomic(path, record)
    return record


def _media(event: VideoGenerated) -> Any:
    import wandb

    if event.path.endswith(".png"):
        return wandb.Image(event.path, caption=event.prompt)
    # By its path: from frames the library would need a movie encoder of its own.
    return wandb.Video(event.path, caption=event.prompt, format="mp4")
