"""How long a step waits for its batch: cached clips on the disk, the loader thread, a device that is busy meanwhile.

    python benchmarks/feeding.py             # prints a table
    python benchmarks/feeding.py --write     # also benchmarks/feeding_<machine>_<yyyymm>.md

64 clips of 768x512 pixels and 49 frames (latents 0.69 MB) with captions of 128 tokens (1.05 MB) are written as cache
entries and read back through `EntryReader` and `BatchStream`, every option at its default: from memory maps of their
files, as where `cache_memory_limit` is 0, and kept in memory as the caches keep what they have read. The step is a
pause of as many milliseconds as a card would compute; the host is free meanwhile, as it is beside a card. Told are the
time that a step waited for its batch, as `BatchStream` counts it, the median of all steps and the mean, which other
work on the machine raises, and the processor time that the loader takes for one batch.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor

from simpletuner.caching.encoding import as_read
from simpletuner.caching.store import EntryReader, EntryWriter, Key, Storing
from simpletuner.data.batch_rules import BatchRules
from simpletuner.data.batches import BatchStream
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample

CLIPS, STEPS = 64, 128
LATENT_SHAPE, TEXT_SHAPE = (128, 7, 16, 24), (128, 4096)


@dataclass(frozen=True)
class Waiting:
    """One measurement.

    Attributes:
        place: Where the cached clips and captions were.
        step_ms: Length of the pause that stands for a step.
        waited_us: Median time a step waited for its batch.
        mean_us: Mean of the same.
        share: Median wait of the median step with its wait.
        loader_ms: Processor time for one batch.
    """

    place: str
    step_ms: float
    waited_us: float
    mean_us: float
    share: float
    loader_ms: float


def write_entries(folder: Path) -> tuple[list[Sample], dict[str, tuple[Key, Key]]]:
    """Samples and their entries, as the caches write them."""
    info = MediaInfo("video", 768, 512, 25.0, 49, 2.0, 0, 1.0, "h264", 1, "1")
    samples, keys = [], {}
    writer = EntryWriter("", Storing())
    for number in range(CLIPS):
        name = f"{number}.mp4"
        plans = FramePlan(49, 25.0, 0.0), CropPlan(768, 512, 0, 0, 768, 512)
        samples.append(Sample("clips", name, info, *plans, (f"caption {number}",), 1))
        facts = {"kind": "latents", "number": number}, {"kind": "prompt", "number": number}
        keys[name] = Key.of(folder, name, facts[0]), Key.of(folder, f"{number}.txt", facts[1])
        writer.write(keys[name][0], facts[0], {"latents": torch.randn(LATENT_SHAPE).to(torch.bfloat16)})
        embeds = torch.randn(TEXT_SHAPE).to(torch.bfloat16)
        writer.write(keys[name][1], facts[1], {"embeds": embeds, "mask": torch.ones(TEXT_SHAPE[0], dtype=torch.bool)})
    return samples, keys


def measure(folder: Path, step_ms: float, place: str) -> Waiting:
    """Two epochs to verify every entry and warm up, then as many steps as are counted."""
    samples, keys = write_entries(folder)
    reader = EntryReader([folder])
    seen: set[Key] = set()
    spent, kept = 0.0, {}

    def read(key: Key) -> dict[str, Tensor]:
        nonlocal spent
        started = time.thread_time()
        if key in kept:
            tensors = kept[key]
        else:
            tensors = reader.read(key, verify=key not in seen)[0]
            seen.add(key)
            if place == "memory":
                kept[key] = {name: tensor.clone() for name, tensor in tensors.items()}
        spent += time.thread_time() - started
        return tensors

    captions = {f"caption {sample.path.split('.')[0]}": keys[sample.path][1] for sample in samples}

    def prompt(caption: str) -> tuple[Tensor, Tensor]:
        found = read(captions[caption])
        return found["embeds"], found["mask"]

    stream = BatchStream(
        samples, lambda sample: as_read(read(keys[sample.path][0])["latents"]), prompt, BatchRules(1, 1),
        seed=1, caption_dropout=0.0, prefetch=10,
    )  # fmt: skip
    for _ in range(2 * CLIPS):
        next(stream)
        time.sleep(step_ms / 1e3)
    before, waits, steps = spent, [], []
    for _ in range(STEPS):
        waited, started = stream.waited_seconds, time.perf_counter()
        next(stream)
        waits.append(stream.waited_seconds - waited)
        time.sleep(step_ms / 1e3)
        steps.append(time.perf_counter() - started)
    stream.close()
    share = statistics.median(waits) / statistics.median(steps)
    loader_ms = 1e3 * (spent - before) / STEPS
    return Waiting(place, step_ms, 1e6 * statistics.median(waits), 1e6 * statistics.mean(waits), share, loader_ms)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="also write the file of this machine")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    lines = [
        "| entries in | step | waited for a batch (mean) | share | processor time of a batch |",
        "|---|---|---|---|---|",
    ]
    for place, step_ms in product(("files", "memory"), (20.0, 50.0, 200.0)):
        rounds = []
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as scratch:
                rounds.append(measure(Path(scratch), step_ms, place))
        found = statistics.median_low(rounds_by_share := sorted(one.share for one in rounds))
        one = next(round_ for round_ in rounds if round_.share == found)
        lines.append(
            f"| {place} | {step_ms:.0f} ms | {one.waited_us:.0f} µs ({one.mean_us:.0f}) | {1e2 * one.share:.3f} % "
            f"({1e2 * rounds_by_share[0]:.3f}-{1e2 * rounds_by_share[-1]:.3f}) | {one.loader_ms:.2f} ms |"
        )
    print("\n".join(lines))
    if given.write:
        name = f"{platform.machine()}-{os.cpu_count()}core"
        path = Path(__file__).with_name(f"feeding_{name}_{datetime.date.today():%Y%m}.md")
        machine = f"torch {torch.__version__}, {platform.platform()}"
        around = f"{machine}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        head = ["# Waiting for batches", "", f"`python benchmarks/feeding.py`, {around}.", ""]
        path.write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
