"""Uploads in the background: checkpoints and results go to one target, which confirms each before it is told.

The journal is followed, so that an upload which a kill or a dead line has cut off goes on at the next
start, and what is there already is neither sent nor announced twice. An upload that fails never ends
training. Knows nothing of the target's protocol.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from simpletuner.config.commands import fill_command
from simpletuner.events.follower import Courier, Follower, LostError, NotNowError
from simpletuner.events.records import Told
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.journal import read_journal
from simpletuner.events.sinks.publish_files import Job, count_held, gather, held_path, hold
from simpletuner.events.types import CheckpointSaved, Event, Noticed, RunFinished, Uploaded, UploadStarted

_HELD_AT_MOST = 4  # checkpoints held by links; each holds its disk space
_SCRIPT_SECONDS = 3600.0


@dataclass(frozen=True)
class Refusal:
    """Why something was not done, whether another try can help, and whether anything else can."""

    reason: str
    is_final: bool
    ends_all: bool = False


class Target(Protocol):
    """Where files go. Nothing here raises for what the network does, and nothing is repeated."""

    name: str  # part of file names
    told: str  # how people call it

    @property
    def repository(self) -> str:
        """How a reader loads what is there."""

    def upload(self, files: Mapping[str, Path | bytes], title: str) -> tuple[str, Refusal | None]:
        """Put files there; the address, and why nothing can be announced, if so."""

    def advice(self, job: Job, source: Path) -> str:
        """The command with which a person uploads `source`; empty when there is none."""


@dataclass(frozen=True)
class PublishPatience:
    """How long uploads are waited for; all in seconds but `attempts`.

    Attributes:
        attempts: Tries of one upload once the run waits for it; before that they go on for ever.
        first_pause: Before the second try; doubles from try to try.
        longest_pause: Between two tries.
        at_end: For all that waits when the run is finished; large files over a slow line take hours.
        at_stop: The same when the run was stopped or failed.
    """

    attempts: int = 3
    first_pause: float = 4.0
    longest_pause: float = 300.0
    at_end: float = 12 * 3600.0
    at_stop: float = 20.0


class Publisher:
    """Uploads what the options ask for to one target."""

    def __init__(
        self, context: SinkContext, target: Target, *, checkpoints: bool, result: bool, patience: PublishPatience
    ) -> None:
        self._context, self._target, self._patience = context, target, patience
        self._checkpoints, self._result = checkpoints, result
        self._outcome, self._reason, self._has_warned = "failed", "the run ended before", False
        courier = Courier(self._deliver, self._wants, self._tell_fault, repeats=True)
        self._follower = Follower(context.folder, target.name, courier)

    def receive(self, event: Event, sequence: int) -> None:
        if isinstance(event, RunFinished):
            self._outcome = event.outcome
        elif isinstance(event, CheckpointSaved) and self._wants(event) and self._has_room():
            # At once, before the next checkpoint can push this one out.
            hold(Path(event.path), self._context.folder, self._target.name)
        self._follower.notify(sequence)

    def close(self) -> None:
        is_whole = self._outcome == "finished"
        self._follower.begin_close(self._patience.at_end if is_whole else self._patience.at_stop)
        try:
            if not self._follower.wait(0.2) and is_whole:
                waiting = ", ".join(dict.fromkeys(self._job(told).told for told in self._follower.pending()))
                self._tell("note", f"uploading to {self._target.told}: {waiting}. Ctrl-C ends the run without it")
            self._follower.wait(float("inf"))
        except KeyboardInterrupt:
            pass  # it goes on at the next start
        self._follower.abandon()
        jobs = {job.told: job for job in map(self._job, self._follower.pending())}
        for job in jobs.values():
            why = f"not uploaded to {self._target.told} yet: {job.told} ({self._reason})"
            self._tell("warning", f"{why}. It goes on when the run is started again{self._by_hand(job)}")

    def _has_room(self) -> bool:
        return count_held(self._context.folder, self._target.name) < _HELD_AT_MOST

    # On the thread of uploads -------------------------------------------------------------------

    def _wants(self, event: Event) -> bool:
        if isinstance(event, CheckpointSaved):
            return self._checkpoints and not event.is_rolling  # the next one replaces those
        return isinstance(event, RunFinished) and event.outcome == "finished" and self._result

    def _job(self, told: Told) -> Job:
        event, folder = told.event, self._context.folder
        if not isinstance(event, CheckpointSaved):
            assert isinstance(event, RunFinished)
            return Job(event.step, folder)
        path = Path(event.path)
        held = held_path(path.name, folder, self._target.name)
        return Job(event.step, held if held.is_dir() else folder / path.name, path.name)

    def _deliver(self, told: Told) -> None:
        job = self._job(told)
        self._follower.begin(told)
        if not (told.is_repeat and self._was_announced(told, job)):
            if not job.folder.is_dir():
                self._warn(f"{job.told} was removed before it could be uploaded to {self._target.told}")
                raise LostError("it was removed before")
            self._context.emit(UploadStarted(job.told, self._target.told))
            begun = time.monotonic()
            address = self._upload(job)
            seconds = time.monotonic() - begun
            self._context.emit(Uploaded(job.told, address, seconds, self._target.told, job.step))
            if self._context.reporting.post_upload_script:
                self._run_script(job, address)
        if job.name and job.folder == held_path(job.name, self._context.folder, self._target.name):
            shutil.rmtree(job.folder, ignore_errors=True)

    def _was_announced(self, told: Told, job: Job) -> bool:
        """Whether a start that was killed got as far as telling it."""
        return any(
            line.get("kind") == "uploaded"
            and int(line["sequence"]) > told.sequence
            and (line["what"], line.get("target")) == (job.told, self._target.told)
            for line in read_journal(self._context.folder)
        )

    def _upload(self, job: Job) -> str:
        """Upload until it is confirmed; the address."""
        pause, tries, tries_at_end = self._patience.first_pause, 0, 0
        while True:
            tries += 1
            tries_at_end += self._follower.is_closing
            title = f"{self._context.run_name}: {job.told}, step {job.step}"
            address, refusal = self._target.upload(gather(job, self._context, self._target.repository), title)
            if refusal is None:
                return address
            self._reason = refusal.reason
            if refusal.is_final or tries >= self._patience.attempts:
                self._warn(f"uploading {job.told} to {self._target.told} fails: {refusal.reason}; training goes on")
            if refusal.ends_all:
                raise NotNowError
            if refusal.is_final:
                raise LostError(refusal.reason)
            # The last words count: a run that is over gives up after as many tries as it takes to be sure.
            is_enough = tries_at_end >= self._patience.attempts
            if is_enough or not self._follower.pause(pause * random.uniform(0.75, 1.25)):  # noqa: S311
                raise NotNowError
            pause = min(pause * 2, self._patience.longest_pause)

    def _run_script(self, job: Job, address: str) -> None:
        options, reporting = self._context.options(), self._context.reporting
        values = {
            "local_checkpoint_path": self._context.folder / job.name if job.name else self._context.folder,
            "global_step": job.step,
            "tracker_run_name": self._context.run_name,
            "tracker_project_name": reporting.tracker_project_name,
            "huggingface_path": self._target.repository if self._target.name == "hub" else "",
            "remote_checkpoint_path": f"{address}/{job.name}".rstrip("/"),
            **{name: options.get(name, "") for name in ("model_family", "model_type", "lora_type")},
        }
        told = {name: str(value) for name, value in values.items()}
        words = fill_command(str(reporting.post_upload_script), told)
        log = self._context.folder / "post_upload_script.log"
        try:
            with log.open("ab") as output:
                done = subprocess.run(  # noqa: S603 - the user's own program, without a shell
                    words, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    timeout=_SCRIPT_SECONDS, check=False,
                )  # fmt: skip
            trouble = f"ended with code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            trouble = "did not end within an hour"
        except OSError as error:
            trouble = f"cannot be started ({error.strerror})"
        if trouble:
            self._tell("warning", f"post_upload_script {trouble} after the upload of {job.told}; see {log.name}")

    # For people -----------------------------------------------------------------------------------

    def _by_hand(self, job: Job) -> str:
        source = self._context.folder / job.name
        advice = self._target.advice(job, source) if source.is_dir() else ""
        return f", or upload it with: {advice}" if advice else ""

    def _warn(self, text: str) -> None:
        """The first trouble is told at once, all of them at the end."""
        if not self._has_warned:
            self._has_warned = True
            self._tell("warning", text)

    def _tell(self, severity: Literal["note", "warning"], text: str) -> None:
        self._context.emit(Noticed(severity, text))

    def _tell_fault(self, error: BaseException) -> None:
        text = f"uploads to {self._target.told} failed and are switched off for this run: {error}"
        self._tell("warning", text)
