"""What previews cost, and how true the linear map is.

    python benchmarks/previews.py CHECKPOINT CLIPS            # prints two tables
    python benchmarks/previews.py CHECKPOINT CLIPS --write    # also benchmarks/previews_<machine>_<yyyymm>.md

CHECKPOINT is a folder in the Diffusers layout whose autoencoder was trained; CLIPS holds video files. Each clip gives
25 frames of 160x96. For each clip in turn the map is fitted on all others, painted for this one, and compared with what
the autoencoder decodes from the same latents, both as means of the map's cells (Pearson's r). The cost is that of a
validation video of 25 frames at 256x160 in 20 denoising steps with guidance, a preview every 5 steps, in CPU seconds
of the process, so that other work on the machine does not count. The transformer has random weights: a miniature as
the demonstration uses, and one of 81 million parameters; real ones are 24 to 160 times larger, and previews are not.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from simpletuner.config.sections.model import ModelSection
from simpletuner.maths.linear_map import correlation
from simpletuner.models.family import GenerationRequest, GenerationStep
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.miniature import write_miniature
from simpletuner.validation.preview import draw_preview
from simpletuner.validation.preview_decoders import Pictures
from simpletuner.validation.preview_map import PreviewMap, cell_colours, fit_preview_map
from simpletuner.validation.video_file import Frames, read_frames

WIDTH, HEIGHT, FRAMES = 160, 96, 25
COST_WIDTH, COST_HEIGHT, STEPS, EVERY = 256, 160, 20, 5
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, found = measure_truth(arguments.checkpoint, arguments.clips)
    lines = [
        "Linear map against the autoencoder's decoding of the same latents, fitted on all other clips:", "",
        "| clip | r to the decoding | r to the clip itself |", "|---|---|---|",
        *(f"| {name} | {decoded:.3f} | {true:.3f} |" for name, decoded, true in rows), "",
        f"Cost of a preview every {EVERY} of {STEPS} steps, {COST_WIDTH}x{COST_HEIGHT} with {FRAMES} frames:", "",
        "| transformer | video, CPU s | painting, ms each | drawing, ms each (another thread) | share of the video |",
        "|---|---|---|---|---|",
        *(measure_cost(found, *shape) for shape in ((4, 4, 32), (8, 12, 64))),
    ]  # fmt: skip
    text = "\n".join(lines)
    print(text)
    if arguments.write:
        machine = f"{platform.machine()}-{os.cpu_count()}core"
        head = f"# Previews, {platform.machine()}, {os.cpu_count()} cores\n\nPython {platform.python_version()}, torch "
        command = f"`python benchmarks/previews.py {arguments.checkpoint.name} {arguments.clips.name} --write`"
        name = f"previews_{machine}_{datetime.date.today():%Y%m}.md"
        Path(__file__).with_name(name).write_text(
            f"{head}{torch.__version__}, one thread. Command: {command}\n\n{text}\n", encoding="utf-8"
        )


def measure_truth(checkpoint: Path, clips: Path) -> tuple[list[tuple[str, float, float]], PreviewMap]:
    """(clip, r to the decoding, r to the clip) of each clip, and a map fitted on all of them."""
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(checkpoint)))
    autoencoder = FAMILY.load_autoencoder(source, torch.float32, CPU)
    pairs, decoded = [], []
    files = sorted(path for path in clips.iterdir() if path.suffix in (".mp4", ".mkv"))
    for path in files:
        frames = fitted(read_frames(path, range(FRAMES))[0])
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latents = autoencoder.encode(pixels)
        shown = ((autoencoder.decode(latents)[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        pairs.append((latents[0], frames))
        decoded.append(shown.permute(1, 2, 3, 0).numpy())
    rows = []
    for number, (path, (latents, frames)) in enumerate(zip(files, pairs, strict=True)):
        found = fit_preview_map(pair for place, pair in enumerate(pairs) if place != number)
        shape = latents.shape[1:]
        painted = found.linear(latents.permute(1, 2, 3, 0)).clamp(0, 1)
        rows.append(
            (path.stem, *(correlation(painted, cell_colours(video, *shape)) for video in (decoded[number], frames)))
        )
    return rows, fit_preview_map(pairs)


def fitted(frames: Frames) -> Frames:
    """The middle of the frames at the measured size."""
    from PIL import Image

    scale = max(WIDTH / frames.shape[2], HEIGHT / frames.shape[1])
    size = (round(frames.shape[2] * scale), round(frames.shape[1] * scale))
    left, top = (size[0] - WIDTH) // 2, (size[1] - HEIGHT) // 2
    box = (left, top, left + WIDTH, top + HEIGHT)
    return np.stack([np.asarray(Image.fromarray(one).resize(size).crop(box)) for one in frames])


def measure_cost(found: PreviewMap, layers: int, heads: int, head_dim: int) -> str:
    """One row of the table of costs."""
    with tempfile.TemporaryDirectory() as folder:
        write_miniature(Path(folder), "0.9.5", layers=layers, heads=heads, head_dim=head_dim)
        source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=folder))
        transformer = FAMILY.load_transformer(source, torch.float32, CPU)
        autoencoder = FAMILY.load_autoencoder(source, torch.float32, CPU)
        embeds, mask = torch.randn(128, 64), torch.ones(128, dtype=torch.bool)
        request = GenerationRequest(
            embeds, mask, embeds, mask, COST_WIDTH, COST_HEIGHT, FRAMES, 25.0, 3.0, STEPS, seed=1
        )
        painting, drawing = [], []

        def look(step: GenerationStep) -> None:
            if step.number % EVERY:
                return
            begun = time.process_time()
            pictures = Pictures(found.paint(step.clean_latents), 8)
            painted = time.process_time()
            draw_preview(pictures, COST_WIDTH, COST_HEIGHT, 25.0)
            painting.append(painted - begun)
            drawing.append(time.process_time() - painted)

        begun = time.process_time()
        with torch.no_grad():
            FAMILY.generate(transformer, source, autoencoder, request, look)
        video = time.process_time() - begun - sum(painting) - sum(drawing)
        count = sum(parameter.numel() for parameter in transformer.parameters()) / 1e6
    share = (sum(painting) + sum(drawing)) / video
    return (
        f"| {count:.1f} M | {video:.1f} | {1e3 * np.mean(painting):.1f} | {1e3 * np.mean(drawing):.1f} | {share:.2%} |"
    )


if __name__ == "__main__":
    main()
