"""TensorBoard: curves, settings and the posters of validation videos, under `<run folder>/<logging_dir>/tensorboard`.

Writes the records themselves, so that neither torch nor a movie encoder is needed: TensorBoard shows
no mp4, and its own `add_video` writes nothing without one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.scalars import video_title
from simpletuner.events.sinks.tracker import Account, Opened, TrackerSink
from simpletuner.events.types import VideoGenerated

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

FOLDER = "tensorboard"


class TensorboardLibrary:
    """The files that TensorBoard reads."""

    name = "tensorboard"
    takes_repeats = True  # readers forget what earlier starts wrote from the first repeated step on
    patience_seconds = 30.0

    def __init__(self) -> None:
        self._writer: EventFileWriter | None = None

    def open(self, account: Account) -> Opened:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(account.folder / FOLDER))
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Record(wall_time=time.time(), step=account.first_step, session_log=start))
        self._write(account.first_step, [_text("settings", json.dumps(account.options, indent=2, default=str))])
        return Opened()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        self._write(step, [{"tag": name, "simple_value": value} for name, value in finite.items()])

    def show(self, step: int, video: VideoGenerated) -> None:
        poster = Path(video.path).with_suffix(".png")
        if poster.is_file():
            self._write(video.step, [{"tag": video_title(video), "image": _image(poster)}])

    def settle(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self, *, has_failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def unfinished(self) -> str:
        return ""

    def _write(self, step: int, values: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.summary_pb2 import Summary

        assert self._writer is not None
        summary = Summary(value=[Summary.Value(**value) for value in values])
        self._writer.add_event(Record(wall_time=time.time(), step=step, summary=summary))


def tensorboard_sink(context: SinkContext) -> TrackerSink:
    """Writes what TensorBoard shows."""
    return TrackerSink(context, TensorboardLibrary())


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
