"""Stage 2: freeze the encoder, measure its latents, encode the clips that the transformer learns from.

    python -m tools.demo_model.encode_clips --folder RUNS [--process N --processes M]

Writes `latents.safetensors`: raw latents in float16, one row per clip number, and their mean and deviation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simpletuner.data.world import draw_scene, render_clip
from tools.demo_model.parts import FRAMES, HEIGHT, WIDTH, Log, add_team_arguments, load_latest, pixels

SEED = 6
CLIPS, HELD_OUT = 5000, 1_000_000
HELD_OUT_CLIPS = 96
# Channels that carry next to nothing are not blown up to the size of the others.
LEAST_DEVIATION = 0.25  # of the mean deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=CLIPS)
    add_team_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    mine = numbers(arguments.clips)[arguments.process :: arguments.processes]
    latents = encode(arguments.folder, mine, Log(arguments.folder / f"encode_clips.{arguments.process}.jsonl"))
    part = arguments.folder / f"latents.{arguments.process}.safetensors"
    save_file({"latents": latents, "numbers": torch.tensor(mine)}, part)
    parts = [arguments.folder / f"latents.{number}.safetensors" for number in range(arguments.processes)]
    if all(path.exists() for path in parts):  # the last one joins them
        join(parts, arguments.clips, arguments.folder / "latents.safetensors")


def numbers(clips: int) -> list[int]:
    """Clips to learn from, then those that are held out."""
    return [*range(clips), *range(HELD_OUT, HELD_OUT + HELD_OUT_CLIPS)]


def encode(folder: Path, mine: list[int], log: Log) -> Tensor:
    """Raw latents [N, C, f, h, w] in float16."""
    model = load_latest(folder).to(torch.bfloat16)
    model = model.to(memory_format=torch.channels_last_3d)
    rows = []
    for number in mine:
        clip = pixels(render_clip(draw_scene(SEED, number), FRAMES, WIDTH, HEIGHT))[None].bfloat16()
        with torch.no_grad():
            rows.append(model.encode(clip).latent_dist.mode()[0].half())
        if len(rows) % 250 == 0:
            log(clips=len(rows))
    return torch.stack(rows)


def join(parts: list[Path], clips: int, path: Path) -> None:
    """All latents in the order of `numbers`, and their statistics."""
    stored = [load_file(part) for part in parts]
    latents, order = (torch.cat([part[name] for part in stored]) for name in ("latents", "numbers"))
    latents = latents[order.argsort()]  # held-out clips have the highest numbers
    values = latents[:clips].float().transpose(0, 1).flatten(1)
    deviation = values.std(1)
    floor = LEAST_DEVIATION * deviation.mean()
    print(f"deviation {deviation.mean():.3f}, {int((deviation < floor).sum())} channels below the floor {floor:.3f}")
    save_file({"latents": latents, "mean": values.mean(1), "deviation": deviation.clamp(min=floor)}, path)


if __name__ == "__main__":
    main()
