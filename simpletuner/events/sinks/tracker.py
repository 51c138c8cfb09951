"""What all trackers have in common: they follow the journal, and hand numbers and videos to their library.

A library is a small class of its own (W&B, TensorBoard, Comet, ...). Here is decided what it gets: a step
at most once and in rising order, in one and the same tracked run over all resumes, also after a kill.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from simpletuner.core.files import write_json_atomic
from simpletuner.events.follower import Courier, Follower
from simpletuner.events.records import Told
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.scalars import event_scalars, resumed_step
from simpletuner.events.types import Event, Noticed, RolledBack, RunFinished, RunStarted, StepFinished, VideoGenerated


@dataclass(frozen=True)
class Account:
    """What a library opens its run with.

    Attributes:
        folder: Where the library may keep its files, absolute; it exists.
        project: Name of the project.
        name: Name of the run.
        identity: The same for every start that goes on with the run; letters and digits.
        is_new: Whether the tracked run begins now.
        first_step: The first step that will be told; what an earlier start told from it on is told again.
        options: Option -> value, without secrets.
        layout: `tracker_image_layout`.
    """

    folder: Path
    project: str
    name: str
    identity: str
    is_new: bool
    first_step: int
    options: Mapping[str, Any]
    layout: str


@dataclass(frozen=True)
class Opened:
    """What a library says when it is opened: something for the user, and the last step that it knows of."""

    note: str = ""
    last_step: int = 0


class Library(Protocol):
    """A tracker's library; called on one thread only. It may raise anything: the tracker is then switched off."""

    name: str
    takes_repeats: bool  # whether steps may be told again after a resume
    patience_seconds: float  # for what is left when the run ends

    def open(self, account: Account) -> Opened:
        """Begin or go on."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def show(self, step: int, video: VideoGenerated) -> None:
        """Take a video that exists."""

    def settle(self) -> None:
        """Put what was taken where a kill does not reach it."""

    def close(self, *, has_failed: bool) -> None:
        """Finish; may take its time."""

    def unfinished(self) -> str:
        """What to do when there was no time to finish."""


class TrackerSink:
    """Hands one library what it should know."""

    def __init__(self, context: SinkContext, library: Library) -> None:
        self._context, self._library = context, library
        self._outcome = "failed"
        self._last_step = 0
        self._is_open = False
        self._follower = Follower(
            context.folder,
            library.name,
            # What a kill leaves in doubt goes out again: a step that is told twice is one step everywhere.
            Courier(
                self._deliver, _concerns, self._tell_fault, remember=self._remember, finish=self._finish, repeats=True
            ),
        )

    def receive(self, event: Event, sequence: int) -> None:
        if isinstance(event, RunFinished):
            self._outcome = event.outcome
        self._follower.notify(sequence)

    def close(self) -> None:
        try:
            waiting = self._follower.close(self._library.patience_seconds)
        except KeyboardInterrupt:
            waiting = self._follower.abandon()
        if waiting and not self._follower.has_failed:
            events = f"{waiting} event{'' if waiting == 1 else 's'}"
            self._tell("warning", f"{self._library.name} has not got {events} yet; they follow at the next start")
        elif self._follower.is_at_work and (advice := self._library.unfinished()):
            self._tell("warning", advice)

    # On the follower's thread -------------------------------------------------------------------

    def _remember(self, told: Told) -> None:
        """What an earlier start has told the library."""
        if isinstance(told.event, RunStarted) and not told.event.resumed_from:
            self._last_step = 0
        elif isinstance(told.event, VideoGenerated) or event_scalars(told.event):
            self._last_step = max(self._last_step, _step_of(told.event))

    def _deliver(self, told: Told) -> None:
        event = told.event
        self._follower.begin(told)
        if isinstance(event, RunStarted):
            is_fresh = not event.resumed_from
            if is_fresh or self._library.takes_repeats or not self._is_open:
                self._open(is_new=is_fresh, first_step=resumed_step(event) + 1)
            return
        if isinstance(event, RolledBack):
            if self._is_open and self._library.takes_repeats:
                self._open(is_new=False, first_step=event.to_step + 1)
            return
        if not self._is_open:  # what an earlier start has left over
            self._open(is_new=False, first_step=self._last_step + 1)
        step, scalars = _step_of(event), event_scalars(event)
        # A resumed run repeats steps, with equal numbers.
        is_news = step > self._last_step or (step == self._last_step and not isinstance(event, StepFinished))
        if scalars and (is_news or self._library.takes_repeats):
            self._library.log(step, scalars)
        self._last_step = step if self._library.takes_repeats else max(step, self._last_step)
        if isinstance(event, VideoGenerated) and Path(event.path).is_file():
            self._library.show(self._last_step, event)
        self._library.settle()

    def _open(self, *, is_new: bool, first_step: int) -> None:
        if self._is_open:
            self._library.close(has_failed=False)
        reporting = self._context.reporting
        folder = (self._context.folder / reporting.logging_dir).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        identity, is_first = self._identity(is_new=is_new)
        account = Account(
            folder, reporting.tracker_project_name, self._context.run_name, identity, is_first, first_step,
            self._context.options(), reporting.tracker_image_layout,
        )  # fmt: skip
        opened = self._library.open(account)
        self._is_open = True
        self._last_step = 0 if is_new else max(self._last_step, opened.last_step)
        if opened.note:
            self._tell("note", opened.note)

    def _identity(self, *, is_new: bool) -> tuple[str, bool]:
        """The name of the tracked run, and whether it was made now; a fresh start gets one of its own."""
        path = self._context.folder / f"{self._library.name}_run.json"
        if not is_new:
            try:
                return str(json.loads(path.read_text(encoding="utf-8"))["id"]), False
            except (OSError, ValueError, KeyError, TypeError):
                pass  # the run began without this tracker
        identity = uuid.uuid4().hex
        write_json_atomic(path, {"id": identity})
        return identity, True

    def _finish(self) -> None:
        if self._is_open:
            self._library.close(has_failed=self._outcome == "failed")

    def _tell(self, severity: Literal["note", "warning"], text: str) -> None:
        self._context.emit(Noticed(severity, text))

    def _tell_fault(self, error: BaseException) -> None:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        text = f"the sink '{self._library.name}' failed and is switched off for this run: {first}"
        self._tell("warning", f"{text}; what it has not got follows at the next start")


def _concerns(event: Event) -> bool:
    return isinstance(event, (RunStarted, RolledBack, VideoGenerated)) or bool(event_scalars(event))


def _step_of(event: Event) -> int:
    return int(vars(event)["step"])
