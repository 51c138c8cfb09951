"""Comet: curves, settings, validation videos and their first frames.

Without an API key (COMET_API_KEY, `comet login`) the run is recorded offline and can be sent later.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.scalars import video_title
from simpletuner.events.sinks.tracker import Account, Opened, TrackerSink
from simpletuner.events.types import VideoGenerated


class CometLibrary:
    """The library of Comet."""

    name = "comet_ml"
    takes_repeats = False
    patience_seconds = 120.0

    def __init__(self) -> None:
        self._experiment: Any = None
        self._folder = Path()

    def open(self, account: Account) -> Opened:
        import comet_ml

        self._folder = account.folder / "comet"
        self._folder.mkdir(parents=True, exist_ok=True)
        is_online = bool(comet_ml.config.get_config("comet.api_key"))
        quiet = {
            "log_code": False, "log_git_metadata": False, "log_git_patch": False, "log_env_details": False,
            "auto_output_logging": False, "parse_args": False, "display_summary_level": 0,
        }  # fmt: skip
        self._experiment = comet_ml.start(
            project_name=account.project,
            experiment_key=account.identity,
            mode="create" if account.is_new else "get_or_create" if is_online else "get",
            online=is_online,
            experiment_config=comet_ml.ExperimentConfig(
                name=account.name, offline_directory=str(self._folder), auto_metric_logging=False, **quiet
            ),
        )
        self._experiment.log_parameters({name: str(value) for name, value in account.options.items()})
        if is_online:
            return Opened(f"Comet shows this run at {self._experiment.url}")
        why = "there is no API key of Comet (`comet login`): the run is recorded here; send it later with"
        return Opened(f"{why}: comet upload {self._folder}/*.zip")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._experiment.log_metrics(dict(scalars), step=step)

    def show(self, step: int, video: VideoGenerated) -> None:
        title, path = video_title(video), Path(video.path)
        if path.suffix != ".png":
            self._experiment.log_video(str(path), name=title, step=step)
        if path.with_suffix(".png").is_file():
            self._experiment.log_image(str(path.with_suffix(".png")), name=title, step=step)

    def settle(self) -> None:
        """What was logged is with a thread of Comet's own; a kill can take the last seconds of it."""

    def close(self, *, has_failed: bool) -> None:
        if self._experiment is not None:
            self._experiment.end()
            self._experiment = None

    def unfinished(self) -> str:
        return f"Comet has not got everything; what it recorded lies in {self._folder}"


def comet_sink(context: SinkContext) -> TrackerSink:
    """Records the run for Comet."""
    return TrackerSink(context, CometLibrary())
