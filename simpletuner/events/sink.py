"""What every receiver of events offers, and what one is given; sinks fulfil the protocol, they inherit nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from simpletuner.config.publishing_file import PublishingPlace
from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.config.webhook_file import Webhook
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


@dataclass(frozen=True)
class SinkContext:
    """What a sink that tells somebody outside the run folder is opened with.

    Attributes:
        folder: The run folder.
        run_name: Name of the run in reports.
        document: `RunConfig.as_document()`; its secrets are starred.
        reporting: The options about who is told.
        webhooks: Receivers of the webhook file.
        places: Where results are published beside the Hub.
        emit: Tells every sink of the run, from any thread; for what only this sink knows.
    """

    folder: Path
    run_name: str
    document: Mapping[str, Any] = field(default_factory=dict)
    reporting: ReportingSection = field(default_factory=ReportingSection)
    webhooks: tuple[Webhook, ...] = ()
    places: tuple[PublishingPlace, ...] = ()
    emit: Callable[[Event], None] = lambda event: None

    def options(self) -> dict[str, Any]:
        """Option -> value of the document, without secrets."""
        return {
            name: facts["value"]
            for section in self.document.get("options", {}).values()
            for name, facts in section.items()
            if facts["value"] != STARRED
        }


STARRED = "***"  # what the document says instead of a secret
