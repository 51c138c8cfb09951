"""Starts of a run as forks of one prepared process, to be killed at any moment; imports are paid once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_LOOP = """
import os, sys, traceback
{preparation}
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        os.dup2(2, 1)  # what a start says is no answer to whoever asked for it
        try:
            code = start(line.strip()) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class ForkServer:
    """A process that forks a child per start."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, word: str, kill_after: float | None = None) -> tuple[bool, float]:
        """One start; it is killed after so many seconds unless it has ended by then.

        Returns:
            Whether it was killed, and how long it ran.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        begun = time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = int(self._process.stdout.readline())
        was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert was_killed or status == 0, f"a start ended with status {status}"
        return was_killed, time.monotonic() - begun


@contextlib.contextmanager
def fork_server(preparation: str, variables: Mapping[str, str], errors: Path) -> Iterator[ForkServer]:
    """Lend a server.

    Args:
        preparation: Code that imports what a start needs and defines `start(word)`.
        variables: Environment of the process.
        errors: Where its error output goes.
    """
    with (
        errors.open("wb") as sink,
        subprocess.Popen(
            [sys.executable, "-c", _LOOP.replace("{preparation}", preparation)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True, env=dict(variables),
        ) as process,
    ):  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", errors.read_text()
            yield ForkServer(process)
        finally:
            process.kill()
