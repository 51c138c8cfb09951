"""Imports everything once and forks a process per run, which it kills on request: a kill then costs no start.

Reads one JSON line per run from standard input, {"arguments": [...], "kill_after": seconds or null, "log": path,
"kill_while_writing": [folder, number of the write] or null}, and answers with {"code": exit code, "killed": bool,
"seconds": of the run}. The server itself computes nothing with torch, so that no thread is lost in a fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import simpletuner.config.resolve
import simpletuner.models.ltxvideo.family
import simpletuner.recipes.train  # noqa: F401
from simpletuner.cli.main import main
from simpletuner.config.catalogs.adapters import ADAPTERS
from simpletuner.config.catalogs.optimizers import OPTIMIZERS


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run one command in a fork."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        code = 70
        try:
            code = main(request["arguments"])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    limit, watched, seen = request["kill_after"], request.get("kill_while_writing"), set()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - started
        if done:
            return {"code": os.waitstatus_to_exitcode(status), "killed": False, "seconds": seconds}
        if watched is not None:
            seen |= set(Path(watched[0]).glob("**/.staging-*"))
        if (limit is not None and seconds >= limit) or (watched is not None and len(seen) >= watched[1]):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"code": -signal.SIGKILL, "killed": True, "seconds": seconds}
        time.sleep(0.001)


if __name__ == "__main__":
    ADAPTERS.load("standard")
    OPTIMIZERS.load("torch-adamw")
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
