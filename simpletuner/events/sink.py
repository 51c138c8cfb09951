"""What every receiver of events offers; sinks fulfil the protocol, they inherit nothing."""

from __future__ import annotations

from typing import Protocol

from simpletuner.events.types import Event


class Sink(Protocol):
    """A receiver of events.

    `receive` is called once per event, in order, never by two threads at once, and returns quickly:
    the training thread waits for it. It may raise `OSError`, `ValueError` or `UserError`.
    """

    def receive(self, event: Event, sequence: int) -> None:
        """Take `event`; `sequence` counts all events of the run folder from 1, across resumes."""

    def close(self) -> None:
        """Finish what is pending; called once, also when the run fails."""
