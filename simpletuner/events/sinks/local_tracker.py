"""`report_to` "simpletuner": the numbers and videos as files that other programs of this name read.

    <run folder>/
        training_metrics.jsonl   a line per step that was told: {"step", "time", "metrics"}; never rewritten
        training_metrics.json    name of the run, its project, names of the numbers, settings; replaced as a whole
        validation_media.jsonl   a line per validation video

The run folder's own files (journal, metrics, report) are there in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from simpletuner.core.files import write_json_atomic
from simpletuner.events.lines import LineFile
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.journal import utc_now
from simpletuner.events.sinks.tracker import Account, Opened, TrackerSink
from simpletuner.events.types import VideoGenerated

METRICS, MANIFEST, MEDIA = "training_metrics.jsonl", "training_metrics.json", "validation_media.jsonl"


class LocalFiles:
    """The files in `folder`."""

    name = "simpletuner"
    takes_repeats = False
    patience_seconds = 30.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._metrics = self._media = None  # type: LineFile | None
        self._account: Account | None = None
        self._names: set[str] = set()

    def open(self, account: Account) -> Opened:
        self._metrics, self._media = LineFile(self._folder / METRICS), LineFile(self._folder / MEDIA)
        self._account, self._names = account, set()
        self._write_manifest("running")
        # A line may have been written just before a kill.
        last = self._metrics.last if not account.is_new else None
        return Opened(last_step=int(last["step"]) if last else 0)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        assert self._metrics is not None
        self._metrics.append({"step": step, "time": utc_now(), "metrics": dict(scalars)})
        if not set(scalars) <= self._names:
            self._names |= set(scalars)
            self._write_manifest("running")

    def show(self, step: int, video: VideoGenerated) -> None:
        assert self._media is not None
        path = Path(video.path)
        self._media.append({**vars(video), "step": step, "path": path.name, "time": utc_now()})

    def settle(self) -> None:
        """Every line is written when it is told."""

    def close(self, *, has_failed: bool) -> None:
        self._write_manifest("failed" if has_failed else "ended")
        for lines in (self._metrics, self._media):
            if lines is not None:
                lines.close()

    def unfinished(self) -> str:
        return ""

    def _write_manifest(self, status: str) -> None:
        assert self._account is not None
        account = self._account
        manifest = {"run": account.name, "project": account.project, "id": account.identity, "status": status,
                    "updated": utc_now(), "metrics": sorted(self._names), "config": dict(account.options)}  # fmt: skip
        write_json_atomic(self._folder / MANIFEST, manifest)


def local_sink(context: SinkContext) -> TrackerSink:
    """Writes the files."""
    return TrackerSink(context, LocalFiles(context.folder))
