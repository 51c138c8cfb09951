"""What filling the latent cache costs beside a bare decode, encode, write loop over the same clips.

    python benchmarks/caching.py             # prints a table
    python benchmarks/caching.py --write     # also benchmarks/caching_<machine>_<yyyymm>.md

16 generated H.264 clips of 512x384 pixels are encoded as windows of 256x192 pixels and 49 frames by the autoencoder of
the miniature checkpoint in bfloat16. "ours" is `cache_latents` from an empty folder, every option at its default: exact
frames by time stamp, Lanczos with full chroma, verified entries flushed to the disk. "bare" is what one would type in
ten minutes: PyAV frame by frame with its default scaler, the Diffusers autoencoder, `save_file`. "stages" are our own
decoding, encoding and writing one after the other. Rounds of all three alternate in one process; the model is loaded
before. Seconds are medians; beside wall time stands processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from bare_start import DTYPE, FRAMES, HEIGHT, WIDTH, encode_clips

from simpletuner.caching.encoding import pixels_on, stored_as
from simpletuner.caching.fingerprint import encoder_identity
from simpletuner.caching.latents import LatentSettings, cache_latents
from simpletuner.caching.store import EntryWriter, Key, Storing
from simpletuner.config.sections.model import ModelSection
from simpletuner.data.decode import decode_sample
from simpletuner.data.probe import probe
from simpletuner.data.sample import CropPlan, FramePlan, Sample
from simpletuner.data.storage import LocalStorage
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.miniature import write_miniature

CLIPS, SOURCE, SOURCE_FRAMES, RATE = 16, (512, 384), 73, 25


@dataclass(frozen=True)
class Material:
    """What every contestant works on."""

    root: Path
    samples: list[Sample]
    autoencoder: Any


def write_clips(root: Path) -> None:
    """Moving texture with a little noise, so that neither decoder nor encoder gets anything for free."""
    draw = np.random.default_rng(0)
    width, height = SOURCE
    for number in range(CLIPS):
        with av.open(str(root / f"clip-{number:02d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            tiles = draw.integers(0, 250, (height // 8, width // 8, 3), dtype=np.uint8)
            picture = tiles.repeat(8, 0).repeat(8, 1)
            for index in range(SOURCE_FRAMES):
                moved = np.roll(picture, (3 * index, 5 * index), (0, 1))
                noisy = moved + draw.integers(0, 6, moved.shape, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
            container.mux(stream.encode())


def prepare(folder: Path) -> Material:
    """Clips, their plans, and the autoencoder on the CPU."""
    root = folder / "clips"
    root.mkdir()
    write_clips(root)
    checkpoint = write_miniature(folder / "checkpoint", "0.9.5")
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(checkpoint)))
    storage = LocalStorage(root)
    crop = CropPlan(WIDTH, HEIGHT, 0, 0, WIDTH, HEIGHT)
    samples = [
        Sample("clips", path.name, probe(storage, path.name), FramePlan(FRAMES, RATE, 0.0), crop, ("a clip",), 1)
        for path in sorted(root.glob("*.mp4"))
    ]
    return Material(root, samples, FAMILY.load_autoencoder(source, DTYPE, torch.device("cpu")))


def run_bare(material: Material, folder: Path) -> dict[str, float]:
    """The bare program's way."""
    started, spent = time.perf_counter(), time.process_time()
    encode_clips(material.autoencoder.model, sorted(material.root.glob("*.mp4")), folder)
    return {"bare": time.perf_counter() - started, "bare, processor": time.process_time() - spent}


def run_stages(material: Material, folder: Path) -> dict[str, float]:
    """Our own three stages, one after the other."""
    storage, settings = LocalStorage(material.root), LatentSettings(identity_of(material), dtype=DTYPE)
    marks = [time.perf_counter()]
    clips = [decode_sample(storage, sample) for sample in material.samples]
    marks.append(time.perf_counter())
    with torch.inference_mode():
        made = [material.autoencoder.encode(pixels_on(torch.device("cpu"), [clip]))[0] for clip in clips]
    marks.append(time.perf_counter())
    writer = EntryWriter("benchmark", Storing())
    for sample, latents in zip(material.samples, made, strict=True):
        facts = settings.facts(sample)
        writer.write(Key.of(folder, sample.path, facts), facts, {"latents": stored_as(latents, DTYPE)})
    marks.append(time.perf_counter())
    seconds = [later - earlier for earlier, later in itertools.pairwise(marks)]
    return dict(zip(("decode", "encode", "write"), seconds, strict=True)) | {"stages": sum(seconds)}


def run_ours(material: Material, folder: Path) -> dict[str, float]:
    """The trainer's own cache from an empty folder."""
    started, spent = time.perf_counter(), time.process_time()
    cache = cache_latents(
        material.samples,
        {"clips": LocalStorage(material.root)},
        {"clips": folder},
        LatentSettings(identity_of(material), dtype=DTYPE),
        lambda: material.autoencoder,
        emit=lambda event: None,
    )
    assert cache.encoded == CLIPS
    return {"ours": time.perf_counter() - started, "ours, processor": time.process_time() - spent}


def identity_of(material: Material) -> str:
    return encoder_identity("benchmark", dtype=str(DTYPE))


def measure(rounds: int) -> dict[str, float]:
    """Median seconds by name."""
    seen: dict[str, list[float]] = {}
    contestants: tuple[Callable[[Material, Path], dict[str, float]], ...] = (run_bare, run_stages, run_ours)
    with tempfile.TemporaryDirectory() as name:
        material = prepare(Path(name))
        for number in range(rounds + 1):
            for contestant in contestants:
                folder = Path(name) / "cache"
                folder.mkdir()
                for key, seconds in contestant(material, folder).items():
                    if number:  # the first round warms up
                        seen.setdefault(key, []).append(seconds)
                shutil.rmtree(folder)
    return {key: statistics.median(values) for key, values in seen.items()}


def tell(seconds: dict[str, float], rounds: int) -> str:
    """The table and the conditions as Markdown."""
    rows = [
        ("bare loop", seconds["bare"]),
        ("our decoding alone", seconds["decode"]),
        ("our encoding alone", seconds["encode"]),
        ("our writing alone", seconds["write"]),
        ("sum of our stages", seconds["stages"]),
        ("ours, overlapped", seconds["ours"]),
    ]
    lines = [
        f"# Filling the latent cache: {CLIPS} clips of {WIDTH}x{HEIGHT}, {FRAMES} frames",
        "",
        "| | seconds | of bare |",
        "|---|---|---|",
        *(f"| {name} | {value:.2f} | {value / seconds['bare']:.2f} |" for name, value in rows),
        "",
        f"ours / sum of its stages: {seconds['ours'] / seconds['stages']:.2f}",
        f"processor seconds: bare {seconds['bare, processor']:.2f}, ours {seconds['ours, processor']:.2f} "
        f"({seconds['ours, processor'] / seconds['bare, processor']:.2f})",
        "",
        f"Medians of {rounds} alternating rounds in one process; {os.cpu_count()} cores, {torch.get_num_threads()} "
        f"threads of PyTorch {torch.__version__}, PyAV {av.__version__}, {platform.machine()}, "
        f"Python {platform.python_version()}. How: `python benchmarks/caching.py`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", metavar="MACHINE", nargs="?", const="this-machine", help="also write the file")
    arguments = parser.parse_args()
    text = tell(measure(arguments.rounds), arguments.rounds)
    print(text)
    if arguments.write:
        month = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m}"
        Path(__file__).with_name(f"caching_{arguments.write}_{month}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
