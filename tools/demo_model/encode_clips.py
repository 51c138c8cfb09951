"""Stage 2: freeze the encoder, measure its latents, encode the clips that the transformer learns from.

    python -m tools.demo_model.encode_clips --folder RUNS

Writes `latents.safetensors`: raw latents in float16, one row per clip number, and their mean and deviation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from simpletuner.data.world import draw_scene, render_clip
from tools.demo_model.parts import FRAMES, HEIGHT, WIDTH, Log, load_average, pixels

SEED = 6
CLIPS, HELD_OUT = 4000, 1_000_000
HELD_OUT_CLIPS = 96
# Channels that carry next to nothing are not blown up to the size of the others.
LEAST_DEVIATION = 0.25  # of the mean deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=CLIPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    log = Log(arguments.folder / "encode_clips.jsonl")
    model = load_average(arguments.folder / "autoencoder.safetensors").to(torch.bfloat16)
    model = model.to(memory_format=torch.channels_last_3d)
    rows = []
    for number in [*range(arguments.clips), *range(HELD_OUT, HELD_OUT + HELD_OUT_CLIPS)]:
        clip = pixels(render_clip(draw_scene(SEED, number), FRAMES, WIDTH, HEIGHT))[None].bfloat16()
        with torch.no_grad():
            rows.append(model.encode(clip).latent_dist.mode()[0].float())
        if len(rows) % 250 == 0:
            log(clips=len(rows))
    latents = torch.stack(rows)
    values = latents[: arguments.clips].transpose(0, 1).flatten(1)
    deviation = values.std(1)
    floor = LEAST_DEVIATION * deviation.mean()
    log(mean_deviation=deviation.mean().item(), below_floor=int((deviation < floor).sum()))
    save_file(
        {"latents": latents.half(), "mean": values.mean(1), "deviation": deviation.clamp(min=floor)},
        arguments.folder / "latents.safetensors",
    )


if __name__ == "__main__":
    main()
