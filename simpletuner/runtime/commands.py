"""Commands of the user's own beside a run: one after another, without a shell, told when one fails."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Callable, Sequence

_TOLD_CHARACTERS = 500  # of a command's last words


def run_command(words: Sequence[str]) -> str:
    """Run a program to its end; returns why it failed, empty when it did not.

    Args:
        words: The program and its arguments; they reach it as they are.
    """
    try:
        # The words come from the user's own configuration, and no shell reads them.
        done = subprocess.run(  # noqa: S603
            list(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except (OSError, ValueError) as error:
        return f"it could not be started ({error})"
    if done.returncode == 0:
        return ""
    said = done.stdout.decode("utf-8", "replace").strip()[-_TOLD_CHARACTERS:]
    return f"it ended with code {done.returncode}" + (f": {said}" if said else "")


class CommandQueue:
    """Runs commands in a thread of its own, in their order."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` gets a sentence for each command that fails, on the queue's thread."""
        self._tell = tell
        self._waiting: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, words: list[str]) -> None:
        """Run this after those before it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="commands", daemon=True)
            self._thread.start()
        self._waiting.put(words)

    def finish(self) -> None:
        """Wait until all are done."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (words := self._waiting.get()) is not None:
            if fault := run_command(words):
                self._tell(f"the command '{words[0]}' failed: {fault}")
