"""Stopping on request: while a step runs, the first signal asks and the second one insists."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from types import FrameType

logger = logging.getLogger(__name__)

_ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in dir(signal)]


class StopRequest:
    """Whether somebody asked the run to stop; call it to know.

    Attributes:
        signal_name: The signal that asked, empty before.
        patient: Whether a first signal only asks. While nothing unsaved would be lost (encoding,
            loading), it is off and a signal ends the work at once.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self.patient = False

    def __call__(self) -> bool:
        return bool(self.signal_name)


@contextlib.contextmanager
def stop_on_signals(tell: Callable[[str], None]) -> Iterator[StopRequest]:
    """While open, Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt, or set a `patient` request.

    A second signal always raises. `tell` gets one sentence for the user after
    the first signal. Earlier handlers come back on exit.
    """
    request = StopRequest()

    def receive(number: int, frame: FrameType | None) -> None:
        if request() or not request.patient:
            raise KeyboardInterrupt
        request.signal_name = signal.Signals(number).name
        tell("Stopping after this step and saving a checkpoint; press Ctrl-C again to stop at once.")

    earlier = {number: signal.signal(number, receive) for number in _ASKING}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
