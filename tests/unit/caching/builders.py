"""A process that builds a small cache again and again in children of its own, which can be killed at any moment.

Started as a script. Each line on its input is a JSON object: where the cache lies, how entries are kept, how many
children build at once, and after how many seconds they are killed. Each line on its output tells what became of them.
Importing PyTorch takes seconds and forking milliseconds, so that a hundred kills take less than a minute.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from simpletuner.caching.fingerprint import encoder_identity
from simpletuner.caching.latents import LatentSettings, cache_latents
from simpletuner.caching.store import EntryReader, Storing, entry_files
from simpletuner.data.sample import FramePlan, Sample
from simpletuner.data.storage import LocalStorage

sys.path.insert(0, str(Path(__file__).parent))
from conftest import PoolingAutoencoder, plan_sample

IDENTITY = encoder_identity("pooling", dtype="float32")
STARTS = [0.0, 0.04, 0.08, 0.12, 0.16, 0.2]


class Builders:
    """The process, seen from a test."""

    def __init__(self, clips: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(clips)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip

    def __enter__(self) -> Builders:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait(timeout=30)

    def build(self, folder: Path, **order: Any) -> list[dict[str, Any]]:
        """Let `children` (1) build; gives, for each, "encoded", "reused" and "killed"."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"folder": str(folder), **order}) + "\n")
        self._process.stdin.flush()
        results: list[dict[str, Any]] = json.loads(self._process.stdout.readline())
        return results


def plan_windows(clips: Path) -> list[Sample]:
    """Windows of one frame of three clips: many small entries."""
    names = ("dark.mp4", "dark.mkv", "deep/grey.mp4")
    return [
        replace(plan_sample(clips, name), frames=FramePlan(1, 25.0, start), part=part)
        for name in names
        for part, start in enumerate(STARTS)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """What a cache holds, in whatever form: entry -> its bytes as stored."""
    reader = EntryReader([folder])
    (shards,) = reader._shards.values()
    held = {path.relative_to(folder).as_posix(): path.read_bytes() for path in entry_files(folder)}
    return held | {record.digest: shards.read(record) for record in shards.all_records()}


def build_once(clips: Path, folder: Path, form: str = "files", compress: bool = False, pause: float = 0.0) -> Any:
    class Slow(PoolingAutoencoder):
        def encode(self, pixels: Any) -> Any:
            time.sleep(pause)
            return super().encode(pixels)

    settings = LatentSettings(IDENTITY, storing=Storing(form, compress), workers=2)  # type: ignore[arg-type]
    storages, folders = {"set": LocalStorage(clips)}, {"set": folder}
    return cache_latents(plan_windows(clips), storages, folders, settings, Slow, emit=lambda event: None)


def _start(clips: Path, order: dict[str, Any]) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    cache = build_once(clips, Path(order.pop("folder")), **order)
    os.write(writing, json.dumps({"encoded": cache.encoded, "reused": cache.reused}).encode())
    os._exit(0)


def _serve(clips: Path) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        count, delay = order.pop("children", 1), order.pop("kill_after", None)
        children = [_start(clips, dict(order)) for _ in range(count)]
        if delay is not None:
            time.sleep(delay)
            for child, _ in children:
                os.kill(child, signal.SIGKILL)
        results = []
        for child, reading in children:
            with os.fdopen(reading) as pipe:
                told = pipe.read()
            status = os.waitpid(child, 0)[1]
            results.append((json.loads(told) if told else {}) | {"killed": os.WIFSIGNALED(status)})
        sys.stdout.write(json.dumps(results) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
