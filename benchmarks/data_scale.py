"""100,000 clips from the listing to the first batches: seconds and memory of each stage.

    python benchmarks/data_scale.py [--clips 100000] [--write NAME]

Only the bytes are made up: every clip is a link to one of a few real ones, with a caption file of its own, so
that listing, header reading, index, captions, planning and batches run as they do for a user. The first scan is
measured twice: with FFmpeg opening every file and decoding its first picture, and with that one answer made up. The
peak is that of the stage alone, in this process; beside it stands that of the largest process it started.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.dataset import ClipDataset, VideoRules
from simpletuner.data import scan as scan_module
from simpletuner.data.batch_rules import BatchRules, SetRules, measure_epoch
from simpletuner.data.buckets import describe_buckets
from simpletuner.data.draw_table import tabulate
from simpletuner.data.find import FoundSamples, find_samples
from simpletuner.data.header_processes import read_in_processes
from simpletuner.data.order import cut_batches, order_epoch
from simpletuner.data.sample import Sample
from simpletuner.data.storage import LocalStorage
from simpletuner.data.tails import fill_buckets

SHAPES = ((128, 96), (96, 128), (128, 72), (72, 128), (96, 96))  # sources of five aspects
FRAMES, RATE, EDGE = 9, 25.0, 64
SETS = ("clips", "more-clips")
CAPTION = "clip number {} of many, told in one sentence"
BATCH_SIZE, ACCUMULATION, PROCESSES = 4, 2, 2
BATCHES_READ = 200
MEBIBYTE = 1 << 20
UNREAD = "scan, FFmpeg's answers made up"
# What a process runs that takes every file for the same clip; all else it does as ever.
MADE_UP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from simpletuner.data import headers, sample; "
    f"known = sample.MediaInfo('video', 128, 96, {RATE}, {FRAMES}, {FRAMES} / {RATE}, 0, 1.0, 'h264', 0, '', False, "
    "False, 'yuv420p'); "
    "headers.read_header = lambda storage, file: (sample.MediaInfo(**{**vars(known), 'size_bytes': file.size_bytes, "
    "'version': file.version}), headers.content_hash(storage, file)); headers.serve()"
)


def write_links(folder: Path, clips: int, contents: Sequence[Path]) -> Path:
    """A folder of `clips` names, each a link to one of `contents`, with a caption file of its own."""
    for number in range(clips):
        part = folder / f"part-{number // 1000:04d}"
        if number % 1000 == 0:
            part.mkdir(parents=True)
        stem = part / f"clip-{number:07d}"
        os.link(contents[number % len(contents)], f"{stem}.mp4")
        Path(f"{stem}.txt").write_text(CAPTION.format(number))
    return folder


# Measuring -------------------------------------------------------------------------------------


@dataclass
class Record:
    """What was measured so far: (stage, seconds, peak in bytes)."""

    rows: list[tuple[str, float, int]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        gc.collect()
        # Linux: 5 sets the high-water mark back to what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        started = time.perf_counter()
        yield
        self.rows.append((name, time.perf_counter() - started, peak_bytes()))
        print(f"{name}: {self.rows[-1][1]:.2f} s, {self.rows[-1][2] / MEBIBYTE:.0f} MiB", flush=True)


def peak_bytes() -> int:
    """High-water mark of this process's resident memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(clips: int, workers: int) -> list[tuple[str, float, int]]:
    """All stages for `clips` clips in two data sets."""
    record = Record()
    with tempfile.TemporaryDirectory() as folder:
        contents = write_contents(Path(folder))
        places = {name: write_links(Path(folder) / name, clips // len(SETS), contents) for name in SETS}
        storages = {name: LocalStorage(place, name) for name, place in places.items()}
        datasets = [entry(name, Path(folder) / "cache" / name) for name in SETS]

        def scan() -> FoundSamples:
            grid = FAMILIES["ltxvideo"].grid
            return find_samples(datasets, storages, grid, workers=workers, emit=lambda event: None)

        with record.stage(UNREAD), made_up_headers():
            found = scan()
        assert len(found.samples) == clips // len(SETS) * len(SETS), found.left_out[:3]
        del found
        shutil.rmtree(Path(folder) / "cache")
        with record.stage("scan, every header read"):
            found = scan()
        assert len(found.samples) == clips // len(SETS) * len(SETS), found.left_out[:3]
        del found
        with record.stage("scan again, from the index"):
            found = scan()
    samples = plan(found.samples, {dataset.id: dataset for dataset in datasets}, record)
    draw(samples, record)
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"largest process that read headers: {child / MEBIBYTE:.0f} MiB")
    return record.rows


@contextmanager
def made_up_headers() -> Iterator[None]:
    """Have processes answer for every header without FFmpeg, from the first file on."""
    kept = scan_module.read_in_processes, scan_module.TRIED_SECONDS
    scan_module.read_in_processes = functools.partial(read_in_processes, program=MADE_UP)
    scan_module.TRIED_SECONDS = -1.0
    try:
        yield
    finally:
        scan_module.read_in_processes, scan_module.TRIED_SECONDS = kept


def write_contents(folder: Path) -> list[Path]:
    """A real clip of each shape."""
    from simpletuner.data.world import write_world

    contents = []
    for width, height in SHAPES:
        place = folder / f"{width}x{height}"
        write_world(place, clips=1, width=width, height=height, num_frames=FRAMES, frame_rate=RATE, seed=0)
        contents.append(place / "clip-000.mp4")
    return contents


def entry(name: str, cache: Path) -> ClipDataset:
    """A data set as a configuration would give it."""
    return ClipDataset(
        id=name,
        instance_data_dir="",
        cache_dir_vae=str(cache),
        resolution=EDGE,
        resolution_type="pixel",
        aspect_bucket_alignment=32,
        repeats=1,
        video=VideoRules(num_frames=FRAMES),
    )


def plan(samples: tuple[Sample, ...], datasets: dict[str, ClipDataset], record: Record) -> tuple[Sample, ...]:
    rules = batch_rules()
    with record.stage("buckets filled, checked and told"):
        filled = fill_buckets(samples, rules, datasets)
        describe_buckets(filled.samples, FAMILIES["ltxvideo"].grid, rules)
        measure_epoch(filled.samples, rules)
    with record.stage("order of one epoch, cut into batches"):
        table = tabulate(filled.samples, rules)
        order = order_epoch(table, 42, 1)
        cut_batches(table.groups[order], table.capacity)
    return filled.samples


def batch_rules() -> BatchRules:
    sets = {SETS[0]: SetRules(probability=0.5), SETS[1]: SetRules(batch_size=2 * BATCH_SIZE)}
    return BatchRules(BATCH_SIZE, ACCUMULATION, PROCESSES, merges_tails=True, sets=sets)


def draw(samples: tuple[Sample, ...], record: Record) -> None:
    with record.stage("torch imported"):
        import torch

        from simpletuner.data.batches import BatchStream

    shapes = {sample.bucket: shape_of(sample) for sample in samples[: 2 * len(SHAPES)]}
    latents = {bucket: torch.zeros(shape) for bucket, shape in shapes.items()}
    prompt = (torch.zeros(32, 16, dtype=torch.bfloat16), torch.ones(32, dtype=torch.bool))
    read_latents: Callable[[Sample], Any] = lambda sample: latents[sample.bucket]  # noqa: E731
    with record.stage("stream built"):
        stream = BatchStream(
            samples, read_latents, lambda caption: prompt, batch_rules(), seed=42, caption_dropout=0.1, prefetch=0
        )
    with record.stage("first batch"):
        next(stream)
    with record.stage(f"{BATCHES_READ} more batches, tensors made up"):
        list(islice(stream, BATCHES_READ))
    position = stream.state_dict()
    with record.stage("resumed, first batch"):
        stream.load_state_dict(position)
        next(stream)


def shape_of(sample: Sample) -> tuple[int, ...]:
    bucket = sample.bucket
    return FAMILIES["ltxvideo"].grid.latent_shape(bucket.width, bucket.height, bucket.num_frames)


# Telling ---------------------------------------------------------------------------------------


def table(rows: Sequence[tuple[str, float, int]]) -> str:
    """The result as a Markdown table."""
    lines = [f"| {name} | {seconds:.2f} | {peak / MEBIBYTE:.0f} |" for name, seconds, peak in rows]
    total = sum(
        seconds for name, seconds, _ in rows if name not in ("torch imported", "scan, FFmpeg's answers made up")
    )
    last = f"| all, without the import | {total:.2f} | {max(peak for _, _, peak in rows) / MEBIBYTE:.0f} |"
    return "\n".join(["| stage | seconds | peak memory, MiB |", "|---|---|---|", *lines, last])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/data_scale_NAME.md")
    chosen = parser.parse_args(arguments)
    text = table(measure(chosen.clips, chosen.workers))
    print(text)
    if chosen.write:
        head = (
            f"# {chosen.clips:,} clips, {platform.machine()}, {os.cpu_count()} cores\n\n"
            f"Python {platform.python_version()}. Command: `python benchmarks/data_scale.py --clips {chosen.clips}`\n\n"
            f"Two data sets whose files open as one of {len(SHAPES)} real clips ({FRAMES} frames, some kilobytes); "
            f"batches of {BATCH_SIZE} and {2 * BATCH_SIZE}, {PROCESSES} processes, each clip drawn twice. The peak is "
            "that of the stage, with everything that earlier stages keep.\n\n"
        )
        (Path(__file__).parent / f"data_scale_{chosen.write}.md").write_text(head + text + "\n")


if __name__ == "__main__":
    main()
