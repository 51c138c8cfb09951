"""The Hub: adapter, model card, videos and checkpoints, uploaded in the background.

Everything is in the run folder first; an upload that fails is told and never ends training, and at the
end the command that repeats it is named. The token comes from where the Hub's own client looks for it.
A checkpoint is held by links while it waits, so that removing old ones cannot empty it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simpletuner.config.hub_name import choose_repository
from simpletuner.core.files import STAGING, write_atomic
from simpletuner.events.outbox import Outbox
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.hub_card import VIDEO_FOLDER, WEIGHTS_NAME, CardFacts, find_videos, write_card
from simpletuner.events.sinks.hub_client import HubRepository, Refusal
from simpletuner.events.types import CheckpointSaved, Event, Noticed, RunFinished, RunStarted, Uploaded

RESULT = "the finished adapter"
CARD = "README.md"
SETTINGS = "simpletuner_config.json"
_WAITING = 4  # checkpoints that may wait; each holds its disk space
_BESIDE_THE_WEIGHTS = ("lycoris_config.json", f"ema/{WEIGHTS_NAME}")


@dataclass(frozen=True)
class HubPatience:
    """How long uploads are waited for; all in seconds but `attempts`.

    Attributes:
        attempts: Tries of one upload while the Hub is thought to be well; the client itself repeats each request too.
        first_pause: Before the second try; doubles from try to try.
        at_end: For all that waits when the run is finished; large files over a slow line take hours.
        at_stop: The same when the run was stopped or failed.
    """

    attempts: int = 3
    first_pause: float = 4.0
    at_end: float = 12 * 3600.0
    at_stop: float = 20.0


@dataclass(frozen=True)
class _Job:
    """One upload: `folder` holds its files; `name` is the checkpoint's, or empty for the result."""

    step: int
    folder: Path
    name: str = ""

    @property
    def told(self) -> str:
        return self.name or RESULT


class HubSink:
    """Uploads what the options ask for."""

    def __init__(self, context: SinkContext, patience: HubPatience | None = None) -> None:
        self._context = context
        self._patience = patience or HubPatience()
        self._settings = context.reporting
        name = choose_repository(self._settings.hub_model_id, self._settings.tracker_project_name)
        self._repository = HubRepository(name, is_private=self._settings.model_card_private)
        self._failed: dict[str, str] = {}  # what was not uploaded -> why
        self._waiting: dict[str, _Job] = {}
        self._outcome, self._has_warned, self._is_silent = "failed", False, False
        self._outbox: Outbox[_Job | None] = Outbox("hub", self._deliver, self._tell_fault, room=_WAITING * 4)

    def receive(self, event: Event, sequence: int) -> None:
        if isinstance(event, RunStarted):
            self._outbox.put(None)  # look at once whether uploads will work
        elif isinstance(event, CheckpointSaved) and self._settings.push_checkpoints_to_hub and not event.is_rolling:
            self._take_checkpoint(event)
        elif isinstance(event, RunFinished):
            self._outcome = event.outcome
            if event.outcome == "finished" and self._settings.push_to_hub:
                self._take(_Job(event.step, self._context.folder))

    def close(self) -> None:
        is_whole = self._outcome == "finished"
        if is_whole and self._waiting:
            waiting = ", ".join(job.told for job in list(self._waiting.values()))
            self._tell("note", f"uploading to the Hub: {waiting}. Ctrl-C ends the run without it")
        try:
            self._outbox.close(self._patience.at_end if is_whole else self._patience.at_stop)
        except KeyboardInterrupt:
            self._outbox.abandon()
        for job in list(self._waiting.values()):
            self._failed.setdefault(job.told, "the run ended before")
        for told, reason in self._failed.items():
            self._tell("warning", f"not uploaded to {self._repository.name}: {told} ({reason}). {self._advice(told)}")

    # On the training thread ---------------------------------------------------------------------

    def _take_checkpoint(self, event: CheckpointSaved) -> None:
        path = Path(event.path)
        if sum(bool(job.name) for job in list(self._waiting.values())) >= _WAITING:
            self._failed[path.name] = "uploads are slower than checkpoints"
            return
        self._take(_Job(event.step, _hold(path, self._context.folder), path.name))

    def _take(self, job: _Job) -> None:
        self._waiting[job.told] = job
        self._outbox.put(job)

    # On the thread of uploads -------------------------------------------------------------------

    def _deliver(self, job: _Job | None) -> None:
        reason = self._try(job)
        if job is None:
            if reason:
                self._warn(f"uploads to the Hub will not work: {reason}; training goes on")
            return
        if reason:
            self._failed[job.told] = reason
            self._warn(f"{job.told} was not uploaded to the Hub: {reason}; training goes on")
        del self._waiting[job.told]
        if job.name and job.folder.name.startswith(STAGING):
            shutil.rmtree(job.folder, ignore_errors=True)

    def _try(self, job: _Job | None) -> str:
        """Upload, with repetitions; why it failed, or empty. None only makes the repository."""
        pause, refusal = self._patience.first_pause, None
        # A Hub that did not answer a whole round of tries gets one per upload until it does.
        for attempt in range(1 if self._is_silent else self._patience.attempts):
            if attempt:
                if not self._outbox.pause(pause * random.uniform(0.75, 1.25)):  # noqa: S311
                    break
                pause *= 2
            refusal = self._upload(job) if job is not None else self._repository.make()
            if refusal is None:
                self._is_silent = False
                return ""
            if refusal.is_final:
                break
        else:
            self._is_silent = True
        return refusal.reason if refusal is not None else "the run ended before"

    def _upload(self, job: _Job) -> Refusal | None:
        begun = time.monotonic()
        refusal = self._repository.make()
        if refusal is not None:
            return refusal
        title = f"{self._context.run_name}: {job.told}, step {job.step}"
        address, refusal = self._repository.commit(self._files(job), title)
        if refusal is None:
            self._context.emit(Uploaded(job.told, address, time.monotonic() - begun))
        return refusal

    def _files(self, job: _Job) -> dict[str, Path | bytes]:
        """Path in the repository -> content. The main weights are always the newest that were uploaded."""
        root, files = self._context.folder, dict[str, "Path | bytes"]()
        if job.name:
            files |= {f"{job.name}/{name}": path for name, path in _below(job.folder).items()}
        for name in (WEIGHTS_NAME, *_BESIDE_THE_WEIGHTS):
            if (job.folder / name).is_file():
                files[name] = job.folder / name
        document = self._context.document
        prompts = document.get("prompts", [])
        videos = find_videos(root, prompts, job.step)
        for video in videos:
            files[video.path] = root / video.path
            poster = (root / video.path).with_suffix(".png")
            if poster.is_file():
                files[f"{VIDEO_FOLDER}/{poster.name}"] = poster
        facts = CardFacts(
            self._repository.name, self._context.run_name, job.step, self._context.options(),
            document.get("datasets", []), prompts, videos, f"ema/{WEIGHTS_NAME}" in files,
        )  # fmt: skip
        write_atomic(root / CARD, write_card(facts).encode("utf-8", "replace"))
        write_atomic(root / SETTINGS, _public_settings(document).encode("utf-8", "replace"))
        return {**files, CARD: (root / CARD).read_bytes(), SETTINGS: (root / SETTINGS).read_bytes()}

    # For people -----------------------------------------------------------------------------------

    def _advice(self, told: str) -> str:
        root = self._context.folder.resolve()
        private = " --private" if self._settings.model_card_private else ""
        if told != RESULT:
            source = root / told
            if not source.is_dir():
                return "It was removed since (checkpoints_total_limit)."
            return f"Upload it with: hf upload {self._repository.name} {shlex.quote(str(source))} {told}{private}"
        kinds = (WEIGHTS_NAME, *_BESIDE_THE_WEIGHTS, CARD, SETTINGS, f"{VIDEO_FOLDER}/*")
        wanted = " ".join(f"--include {shlex.quote(kind)}" for kind in kinds)
        return f"Upload it with: hf upload {self._repository.name} {shlex.quote(str(root))} . {wanted}{private}"

    def _warn(self, text: str) -> None:
        """The first trouble is told at once, all of them at the end."""
        if not self._has_warned:
            self._has_warned = True
            self._tell("warning", text)

    def _tell(self, severity: Literal["note", "warning"], text: str) -> None:
        self._context.emit(Noticed(severity, text))

    def _tell_fault(self, error: BaseException) -> None:
        self._tell("warning", f"the sink 'hub' failed and is switched off for this run: {error}")


def _hold(checkpoint: Path, folder: Path) -> Path:
    """A second name for the files of a checkpoint, without copying them; itself where links do not work."""
    held = folder / f"{STAGING}hub-{checkpoint.name}"
    shutil.rmtree(held, ignore_errors=True)
    try:
        for name, path in _below(checkpoint).items():
            (held / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, held / name)
    except OSError:
        shutil.rmtree(held, ignore_errors=True)
        return checkpoint
    return held


def _below(folder: Path) -> dict[str, Path]:
    """Path below the folder -> file."""
    found: dict[str, Path] = {}
    with contextlib.suppress(OSError):
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return found


def _public_settings(document: Any) -> str:
    """The options somebody wrote, without secrets and without the folders of this machine."""
    chosen = {
        name: facts["value"]
        for section in document.get("options", {}).values()
        for name, facts in section.items()
        if facts["origin"] != "default" and facts["value"] != "***" and not _is_place(facts["value"])
    }
    return json.dumps(chosen, indent=2, ensure_ascii=False, default=str) + "\n"


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~", "\\\\")) or value[1:3] in (":\\", ":/"))
