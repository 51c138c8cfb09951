"""What a person sees while the program looks or begins: told on stderr, and only where it takes a while."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from simpletuner.events.types import Event, StageStarted

QUIET_SECONDS = 1.5
PAUSE_TERMINAL_SECONDS, PAUSE_PIPE_SECONDS = 0.2, 10.0


@contextlib.contextmanager
def loading_libraries(stream: TextIO | None = None) -> Iterator[None]:
    """Hold this open around imports that bring PyTorch in: they take seconds, which a terminal is told meanwhile."""
    stream = stream or sys.stderr
    shows = stream.isatty()
    if shows:
        stream.write("Loading PyTorch and its libraries …")
        stream.flush()
    gc.disable()  # imports make hundreds of thousands of objects and hardly any garbage
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()  # or the first collection would walk through all of them
        gc.enable()
        if shows:
            stream.write("\r\033[K")
            stream.flush()


class LateProgress:
    """Receives events; says nothing for the first moments, then one line that is renewed."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._said = 0.0
        self._labels: dict[str, StageStarted] = {}

    def __call__(self, event: Event) -> None:
        """Take one event."""
        # Imported here: a check of the configuration alone has no events.
        from simpletuner.events.types import StageAdvanced, StageFinished, StageStarted

        if isinstance(event, StageStarted):
            self._labels[event.stage] = event
        elif isinstance(event, StageAdvanced) and event.stage in self._labels:
            self._say(self._labels[event.stage], event.done)
        elif isinstance(event, StageFinished) and self._said and self._stream.isatty():
            self._stream.write("\r\033[K")

    def _say(self, stage: StageStarted, done: int) -> None:
        now = time.monotonic()
        pause = PAUSE_TERMINAL_SECONDS if self._stream.isatty() else PAUSE_PIPE_SECONDS
        if now - self._started < QUIET_SECONDS or now - self._said < pause:
            return
        self._said = now
        line = f"{stage.label}: {done}/{stage.total} {stage.unit}"
        self._stream.write(f"\r\033[K{line}" if self._stream.isatty() else line + "\n")
        self._stream.flush()
