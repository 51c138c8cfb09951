"""Weights & Biases: curves, settings and validation videos.

Without a login the run is recorded offline and can be sent later; WANDB_MODE and the library's other
variables are its own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.scalars import video_title
from simpletuner.events.sinks.tracker import Account, Opened, TrackerSink
from simpletuner.events.types import VideoGenerated

if TYPE_CHECKING:
    from wandb import Run

_INIT_SECONDS = 60
_COLUMNS = ["step", "prompt", "text", "size", "weights", "video"]


class WandbLibrary:
    """The library of W&B."""

    name = "wandb"
    takes_repeats = False
    patience_seconds = 300.0  # videos may still be on their way; whoever does not want to wait presses Ctrl-C

    def __init__(self) -> None:
        self._run: Run | None = None
        self._folder = Path()
        self._as_table = False
        self._rows: list[list[Any]] = []
        self._step = 0

    def open(self, account: Account) -> Opened:
        import wandb

        self._folder, self._as_table = account.folder, account.layout == "table"
        mode: Literal["offline"] | None = None
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            mode = "offline"
        run = wandb.init(
            project=account.project,
            name=account.name,
            id=account.identity,
            resume="allow",
            dir=str(account.folder),
            mode=mode,
            config=dict(account.options),
            # The terminal belongs to this program, and a run's output may hold what is nobody's business.
            settings=wandb.Settings(console="off", silent=True, init_timeout=_INIT_SECONDS),
        )
        self._run = run
        # Online, W&B knows better than a file that a kill may have left behind.
        return Opened(_note(run, mode), run.step - 1)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        assert self._run is not None
        self._run.log(dict(scalars), step=step)

    def show(self, step: int, video: VideoGenerated) -> None:
        import wandb

        assert self._run is not None
        if not self._as_table:
            self._run.log({video_title(video): _media(video)}, step=step)
            return
        if step != self._step:
            self._step, self._rows = step, []
        size = f"{video.width}x{video.height}"
        self._rows.append([video.step, video.nickname, video.prompt, size, video.weights, _media(video)])
        # Of several tables of one step W&B keeps the last, which holds all rows so far.
        self._run.log({"validation": wandb.Table(columns=_COLUMNS, data=self._rows)}, step=step)

    def settle(self) -> None:
        """What was logged is with a process of W&B's own, which outlives this one."""

    def close(self, *, has_failed: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=1 if has_failed else 0)
            self._run = None

    def unfinished(self) -> str:
        return f"W&B has not got everything; send the rest with: wandb sync {self._folder / 'wandb'}/*run-*"


def wandb_sink(context: SinkContext) -> TrackerSink:
    """Records the run for Weights & Biases."""
    return TrackerSink(context, WandbLibrary())


def _note(run: Run, mode: str | None) -> str:
    if run.settings.mode == "offline":
        why = "nobody is logged in to W&B (`wandb login`)" if mode else "WANDB_MODE says offline"
        return f"{why}: the run is recorded here; send it later with: wandb sync {Path(run.dir).parent}"
    return f"W&B shows this run at {run.url}" if run.settings.mode == "online" else ""


def _media(video: VideoGenerated) -> Any:
    import wandb

    if video.path.endswith(".png"):
        return wandb.Image(video.path, caption=video.prompt)
    # By its path: from frames the library would need a movie encoder of its own.
    return wandb.Video(video.path, caption=video.prompt, format="mp4")
