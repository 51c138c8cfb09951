"""A tracker of the user's own: one Python file with exactly one subclass of Accelerate's `GeneralTracker`.

The file is code the user wrote and named in the configuration; it is run as such. It gets the settings once
and the numbers of every step; `GeneralTracker` knows no videos.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpletuner.core.errors import UserError
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.tracker import Account, Opened, TrackerSink
from simpletuner.events.types import VideoGenerated

BASE = "GeneralTracker"
_MODULE = "simpletuner_custom_tracker"


class CustomLibrary:
    """The tracker in the file `path`."""

    name = "custom-tracker"
    takes_repeats = False
    patience_seconds = 30.0

    def __init__(self, path: Path) -> None:
        self._class = find_tracker(path)
        self._tracker: Any = None

    def open(self, account: Account) -> Opened:
        words = (account.name, str(account.folder)) if self._class.requires_logging_directory else (account.name,)
        self._tracker = self._class(*words)
        starting = inspect.getattr_static(self._tracker, "start", None)
        if callable(starting):  # newer versions of Accelerate begin the run here
            self._tracker.start()
        self._tracker.store_init_configuration(dict(account.options))
        return Opened()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._tracker.log(dict(scalars), step=step)

    def show(self, step: int, video: VideoGenerated) -> None:
        """The interface has no videos."""

    def settle(self) -> None:
        """What the tracker does with what it has got is its own affair."""

    def close(self, *, has_failed: bool) -> None:
        if self._tracker is not None:
            self._tracker.finish()
            self._tracker = None

    def unfinished(self) -> str:
        return "the custom tracker did not finish in time"


def custom_sink(context: SinkContext) -> TrackerSink:
    """Hands the run to the tracker in the file `custom_tracker`.

    Raises:
        UserError: If the file holds no tracker, or several.
    """
    return TrackerSink(context, CustomLibrary(Path(str(context.reporting.custom_tracker))))


def find_tracker(path: Path) -> Any:
    """The one class in the file that is a `GeneralTracker`.

    Raises:
        UserError: If there is none, or more than one, or one that lacks a part.
    """
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise UserError(f"custom_tracker = {path.name}: it is no Python file", fix="Name a file that ends with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    spec.loader.exec_module(module)
    found = [
        item
        for item in vars(module).values()
        if isinstance(item, type)
        and item.__module__ == _MODULE
        and any(base.__name__ == BASE for base in item.__mro__[1:])
    ]
    if len(found) != 1:
        names = ", ".join(item.__name__ for item in found) or "none"
        raise UserError(
            f"custom_tracker = {path.name} holds {len(found)} subclasses of {BASE} ({names})",
            "It must hold exactly one",
            "Write one class that inherits from accelerate.tracking.GeneralTracker",
        )
    needed = ("name", "requires_logging_directory", "tracker", "store_init_configuration", "log")
    own = {name for base in found[0].__mro__ if base.__name__ != BASE for name in vars(base)}
    if missing := [name for name in needed if name not in own]:
        raise UserError(
            f"custom_tracker = {path.name}: {found[0].__name__} lacks {', '.join(missing)}",
            f"A tracker has {', '.join(needed)}",
            "Add what is missing",
        )
    return found[0]
