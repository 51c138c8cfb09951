"""How long training waits for a checkpoint, written beside it and in its way, against the length of a step.

`python benchmarks/checkpoint_stall.py` trains a small random checkpoint on the CPU and saves every fourth step. The
stall is the time between the end of one step and the beginning of the next: copying the run's state; the share of the
time is that of a run with the usual number of steps between two checkpoints. On the clock it holds whatever the machine
does besides, the writing thread included; in processor time it is the training thread's own work.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from simpletuner.config.sections.checkpoint import CheckpointSection
from simpletuner.models.ltxvideo.miniature import write_miniature
from simpletuner.training.fit import fit
from simpletuner.training.saver import CheckpointSaver, Saved
from simpletuner.training.snapshot import take_snapshot

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "record.py"
EVERY = 4
USUAL_INTERVAL = CheckpointSection().checkpoint_step_interval


@dataclass(frozen=True)
class Run:
    """One run of 20 steps: wall and processor seconds of its steps and stalls, and its checkpoints."""

    steps: list[float]
    step_work: list[float]
    stall_work: list[float]
    saved: list[Saved]


def measure(checkpoint: Path, folder: Path, *, in_background: bool) -> Run:
    """Train and save; the processor time is that of the training thread alone."""
    state, objective = runpy.run_path(str(GOLDEN))["begin_run"](checkpoint, optimizer="adamw_bf16", precision="bf16")
    saved: list[Saved] = []
    saver = CheckpointSaver(folder, saved.append, in_background=in_background)
    run = Run([], [], [], saved)
    last, worked = time.perf_counter(), time.thread_time()
    for event in fit(state, objective, stop=lambda: False):
        run.steps.append(time.perf_counter() - last)
        run.step_work.append(time.thread_time() - worked)
        if event.step % EVERY == 0:
            worked = time.thread_time()
            saver.save(lambda: take_snapshot(state, {}))
            run.stall_work.append(time.thread_time() - worked)
        last, worked = time.perf_counter(), time.thread_time()
    saver.finish()
    return run


def main() -> None:
    """Print one line per way of saving."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_miniature(Path(scratch) / "ltx", "0.9.5", seed=0)
        for in_background in (True, False):
            runs = [
                measure(checkpoint, Path(scratch) / f"{in_background}-{number}", in_background=in_background)
                for number in range(rounds)
            ]
            saved = [item for run in runs for item in run.saved]
            stalls = statistics.median(item.stalled_seconds for item in saved)
            whole = statistics.median(item.seconds for item in saved)
            step = statistics.median(seconds for run in runs for seconds in run.steps)
            work = statistics.median(seconds for run in runs for seconds in run.step_work)
            stalled = statistics.median(seconds for run in runs for seconds in run.stall_work)
            way = "beside training" if in_background else "in its way"
            print(
                f"{way}: step {1e3 * step:.1f} ms, checkpoint {1e3 * whole:.1f} ms, stall {1e3 * stalls:.1f} ms = "
                f"{stalls / step:.2f} steps, {stalls / step / USUAL_INTERVAL:.4%} of the time with a checkpoint every "
                f"{USUAL_INTERVAL} steps ({len(saved)} checkpoints, medians)"
            )
            print(
                f"  processor time of the training thread: step {1e3 * work:.1f} ms, stall {1e3 * stalled:.2f} ms = "
                f"{stalled / work:.1%} of a step, {stalled / work / USUAL_INTERVAL:.4%} of the time"
            )


if __name__ == "__main__":
    main()
