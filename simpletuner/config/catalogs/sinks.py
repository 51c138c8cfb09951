"""Who is told what happens: one row per sink.

`target` names a callable that takes the run folder and gives a `Sink` (see `events/sink.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from simpletuner.core.catalog import Catalog


@dataclass(frozen=True)
class SinkRow:
    """One receiver of events.

    Attributes:
        target: Code behind the row, "package.module:attribute".
        summary: What it does with events, one line.
        durable: Whether the run must stop when it cannot write; every other sink is switched off
            with a warning instead.
    """

    target: str
    summary: str
    durable: bool = False


# The order is the order of delivery: an event is in the journal before anybody else hears of it.
SINKS: Catalog[SinkRow] = Catalog(
    "sink",
    {
        "journal": SinkRow(
            "simpletuner.events.sinks.journal:JournalSink", "every event, one JSON line each", durable=True
        ),
        "metrics": SinkRow("simpletuner.events.sinks.metrics:MetricsSink", "one JSON line per optimizer step"),
        "console": SinkRow("simpletuner.events.sinks.console:ConsoleSink", "the story and progress on the terminal"),
    },
)
