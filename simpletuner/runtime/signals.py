"""What people and schedulers ask of a running process by signals: to stop, to save, to show where it is.

| signal | while a step runs |
|---|---|
| SIGINT (Ctrl-C), SIGTERM, SIGHUP | save and stop; a second one ends the process at once |
| SIGUSR1 | save a checkpoint and go on |
| SIGUSR2 | make the validation videos and go on |

Windows knows Ctrl-C and Ctrl-Break only: both stop, and there is no signal to save or to validate.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

_STOPPING: Final = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if name in dir(signal)
]
_WISHES: Final = {
    getattr(signal, name): wish for name, wish in (("SIGUSR1", "save"), ("SIGUSR2", "validate")) if name in dir(signal)
}
_TOLD: Final = {
    "save": "Saving a checkpoint after this step, as asked by a signal.",
    "validate": "Making the validation videos after this step, as asked by a signal.",
}


class Requests:
    """What has been asked for; call it to know whether to stop.

    Attributes:
        signal_number: The signal that asked to stop, 0 before.
        patient: Whether a first signal only asks. While nothing unsaved would be lost (encoding,
            loading), it is off and a signal ends the work at once; wishes wait until it is on.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self.patient = False
        self._wishes: set[str] = set()

    def __call__(self) -> bool:
        return bool(self.signal_number)

    @property
    def has_wishes(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._wishes)

    def wish(self, name: str) -> None:
        """Note a wish: "save" or "validate"."""
        self._wishes.add(name)

    def take(self, name: str) -> bool:
        """Whether this was wished for; it is granted with that."""
        is_wished = name in self._wishes
        self._wishes.discard(name)
        return is_wished


@contextlib.contextmanager
def listen_to_signals(tell: Callable[[str], None]) -> Iterator[Requests]:
    """While open, signals that stop raise KeyboardInterrupt (its argument is the signal's number), or set a `patient`
    request; others become wishes.

    A second signal to stop always raises. `tell` gets one sentence for the user after the first one, and after each
    wish. Earlier handlers come back on exit.
    """
    requests = Requests()

    def stop(number: int, frame: FrameType | None) -> None:
        if requests() or not requests.patient:
            raise KeyboardInterrupt(number)
        requests.signal_number = number
        tell("Stopping as soon as nothing is lost, and saving a checkpoint; press Ctrl-C again to stop at once.")

    def note(number: int, frame: FrameType | None) -> None:
        requests.wish(_WISHES[signal.Signals(number)])
        tell(_TOLD[_WISHES[signal.Signals(number)]])

    earlier = {number: signal.signal(number, stop) for number in _STOPPING}
    earlier |= {number: signal.signal(number, note) for number in _WISHES}
    try:
        yield requests
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
