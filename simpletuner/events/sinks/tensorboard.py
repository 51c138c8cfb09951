"""TensorBoard: curves, settings and the posters of validation videos, under `<run folder>/<logging_dir>/tensorboard`.

Writes the records themselves, so that neither torch nor a movie encoder is needed: TensorBoard shows
no mp4, and its own `add_video` writes nothing without one. Works on a thread of its own.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from simpletuner.events.outbox import Outbox
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.scalars import resumed_step, step_scalars, video_title
from simpletuner.events.types import Event, Noticed, RunStarted, StepFinished, VideoGenerated

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

FOLDER = "tensorboard"
ROOM = 10_000
_SECONDS_AT_END = 30.0
_FLUSH_SECONDS = 20


class TensorboardSink:
    """Writes what TensorBoard shows."""

    def __init__(self, context: SinkContext) -> None:
        self._context = context
        self._writer: EventFileWriter | None = None
        self._outbox: Outbox[Event] = Outbox(
            "tensorboard", self._deliver, self._tell_fault, finish=self._finish, room=ROOM
        )

    def receive(self, event: Event, sequence: int) -> None:
        if isinstance(event, (RunStarted, StepFinished, VideoGenerated)):
            self._outbox.put(event)

    def close(self) -> None:
        self._outbox.close(_SECONDS_AT_END)

    def _deliver(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._open(event)
        elif isinstance(event, StepFinished):
            scalars = {name: value for name, value in step_scalars(event).items() if math.isfinite(value)}
            self._write(event.step, [{"tag": name, "simple_value": value} for name, value in scalars.items()])
        elif isinstance(event, VideoGenerated):
            poster = Path(event.path).with_suffix(".png")
            if poster.is_file():
                self._write(event.step, [{"tag": video_title(event), "image": _image(poster)}])

    def _open(self, event: RunStarted) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = self._context.folder / self._context.reporting.logging_dir / FOLDER
        self._writer = EventFileWriter(str(folder), flush_secs=_FLUSH_SECONDS)
        # Readers forget what earlier starts wrote from this step on: the run repeats it.
        first = resumed_step(event) + 1
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Record(wall_time=time.time(), step=first, session_log=start))
        self._write(first, [_text("settings", json.dumps(self._context.options(), indent=2, default=str))])

    def _write(self, step: int, values: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is not None:
            summary = Summary(value=[Summary.Value(**value) for value in values])
            self._writer.add_event(Record(wall_time=time.time(), step=step, summary=summary))

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _tell_fault(self, error: BaseException) -> None:
        self._context.emit(
            Noticed("warning", f"the sink 'tensorboard' failed and is switched off for this run: {error}")
        )


def _image(path: Path) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(path) as picture:
        width, height = picture.size
    return Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes())


def _text(tag: str, text: str) -> dict[str, Any]:
    from tensorboard.compat.proto import types_pb2
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    indented = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown shows it as it is
    return {
        "tag": tag,
        "metadata": SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
        "tensor": TensorProto(dtype=types_pb2.DT_STRING, string_val=[indented.encode()]),
    }
