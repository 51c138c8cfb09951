"""Events come back from the journal as they were told; the set of kinds is closed."""

from __future__ import annotations

import json
import math
from pathlib import Path

from simpletuner.events.lines import read_from
from simpletuner.events.records import KINDS, event_of
from simpletuner.events.sinks.journal import JOURNAL, JournalSink
from simpletuner.events.types import Event, Noticed, RunFinished, StepFinished, StoryTold


def written(folder: Path, event: Event) -> dict:
    sink = JournalSink(folder)
    sink.receive(event, 7)
    sink.close()
    return json.loads((folder / JOURNAL).read_text().splitlines()[-1])


def test_an_event_comes_back_as_it_was(tmp_path: Path) -> None:
    for event in (
        StoryTold("Clips", (("found", "6"), ("used", "5"))),
        StepFinished(3, 1, 0.5, 1e-4, 0.7, 2, 336, 2.0, 7, {"flow": 0.25}),
        Noticed("warning", "a\nb"),
        RunFinished(3, "stopped"),
    ):
        assert event_of(written(tmp_path, event)) == event


def test_numbers_that_were_none_come_back_as_such(tmp_path: Path) -> None:
    event = event_of(written(tmp_path, StepFinished(3, 1, math.inf, 1e-4, 0.7, 2, 336, 2.0, 7, {"flow": math.nan})))
    assert isinstance(event, StepFinished)
    assert math.isnan(event.loss)
    assert math.isnan(event.terms["flow"])


def test_lines_of_other_versions_are_passed_over() -> None:
    assert event_of({"kind": "teleported", "where": "moon"}) is None
    assert event_of({"kind": "run_finished"}) is None, "a field is missing"
    assert event_of({"kind": "run_finished", "step": 1, "outcome": "stopped", "mood": "x"}) == RunFinished(1, "stopped")


def test_the_set_is_closed() -> None:
    assert {kind.__module__ for kind in Event.__subclasses__()} == {"simpletuner.events.types"}
    assert set(KINDS.values()) == set(Event.__subclasses__())


def test_reading_stops_before_a_line_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a":1}\nnoise\n{"a":2}\n{"a":')
    (first, end), *rest = read_from(path, 0, 10)
    assert (first, end) == ({"a": 1}, 8)
    assert [record for record, _ in rest] == [{"a": 2}]
    assert read_from(path, rest[0][1], 10) == []
    assert read_from(path, 0, 1) == [({"a": 1}, 8)]
    assert read_from(tmp_path / "missing", 0, 1) == []
