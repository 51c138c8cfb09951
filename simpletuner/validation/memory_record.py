"""What a run's memory was forecast to be and what was measured, phase by phase, from its journal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simpletuner.events.sinks.journal import read_journal
from simpletuner.events.wording import told_size


@dataclass(frozen=True)
class MemoryRow:
    """One phase: what was tried, what it took, what was expected, and how far off that was."""

    phase: str
    what: str
    measured: str
    forecast: str
    off: str


def memory_rows(run_folder: Path) -> list[MemoryRow]:
    """The phases measured at the last start that measured any, in their order."""
    events = list(read_journal(run_folder, kinds=("memory_measured",)))
    last = events[-1]["start"] if events else None
    rows = {}
    for event in (event for event in events if event["start"] == last):
        measured, forecast = int(event["measured_bytes"]), int(event["forecast_bytes"])
        off = f"{forecast / measured - 1:+.0%}" if measured and forecast else ""
        told = told_size(forecast) if forecast else "not known"
        rows[event["phase"]] = MemoryRow(event["phase"], event["what"], told_size(measured), told, off)
    return list(rows.values())
