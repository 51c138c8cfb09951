"""How long training waits for a checkpoint, written beside it and in its way, against the length of a step.

`python benchmarks/checkpoint_stall.py` trains a small random checkpoint on the CPU and saves every fourth step.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from simpletuner.models.ltxvideo.miniature import write_miniature
from simpletuner.training.fit import fit
from simpletuner.training.saver import CheckpointSaver, Saved
from simpletuner.training.snapshot import take_snapshot

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "record.py"
EVERY = 4


def measure(checkpoint: Path, folder: Path, *, in_background: bool) -> tuple[list[float], list[Saved]]:
    """Seconds of the steps, and the checkpoints of one run of 20 steps."""
    state, objective = runpy.run_path(str(GOLDEN))["begin_run"](checkpoint, optimizer="adamw_bf16", precision="bf16")
    saved: list[Saved] = []
    saver = CheckpointSaver(folder, saved.append, in_background=in_background)
    steps, last = [], time.perf_counter()
    for event in fit(state, objective, stop=lambda: False):
        steps.append(time.perf_counter() - last)
        if event.step % EVERY == 0:
            saver.save(lambda: take_snapshot(state, {}))
        last = time.perf_counter()
    saver.finish()
    return steps, saved


def main() -> None:
    """Print one line per way of saving."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_miniature(Path(scratch) / "ltx", "0.9.5", seed=0)
        for in_background in (True, False):
            steps: list[float] = []
            saved: list[Any] = []
            for number in range(rounds):
                found = measure(checkpoint, Path(scratch) / f"{in_background}-{number}", in_background=in_background)
                steps, saved = steps + found[0], saved + found[1]
            stalls = statistics.median(item.stalled_seconds for item in saved)
            whole, step = statistics.median(item.seconds for item in saved), statistics.median(steps)
            way = "beside training" if in_background else "in its way"
            print(
                f"{way}: step {1e3 * step:.1f} ms, checkpoint {1e3 * whole:.1f} ms, stall {1e3 * stalls:.1f} ms = "
                f"{stalls / step:.2f} steps ({len(saved)} checkpoints, medians)"
            )


if __name__ == "__main__":
    main()
