"""Stage 6: a tiny decoder of the demo's latents for previews, in the TAE layout.

    python -m tools.demo_model.train_preview --folder RUNS

Learns from clips of the rich kind, encoded once.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from simpletuner.models.ltxvideo.tiny_decoder import TinyDecoder, save_tiny_decoder
from simpletuner.runtime.seeds import stream_seed
from tools.demo_model.parts import Log, load_latest, pixels, rich_clip
from tools.demo_model.train_autoencoder import SEED

CLIPS = 1000
WIDTHS = (24, 16, 12, 12)
LEARNING_RATE, WARM_UP, BATCH = 3e-3, 50, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    log = Log(arguments.folder / "preview.jsonl")
    clips = [rich_clip(SEED + 2, number) for number in range(CLIPS)]
    latents = encoded(arguments.folder, clips)
    torch.manual_seed(stream_seed(SEED, "demo_model.preview", 0))
    model = TinyDecoder(latents.shape[1], WIDTHS)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, betas=(0.9, 0.99))
    recent, start = [], time.process_time()
    for step in range(arguments.steps):
        way = 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * way)
        dice = np.random.default_rng(stream_seed(SEED, "demo_model.preview", step + 1))
        loss = torch.zeros(())
        for row in dice.integers(len(clips), size=BATCH):
            painted = model(latents[row : row + 1])
            loss = loss + functional.mse_loss(painted, (pixels(clips[row])[None] + 1) / 2) / BATCH
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            psnr = -10 * math.log10(float(np.mean(recent[-50:])))
            log(step=step + 1, psnr=round(psnr, 2), cpu=round(time.process_time() - start))
    save_tiny_decoder(model.to(torch.bfloat16), arguments.folder / "preview_decoder.safetensors")


def encoded(folder: Path, clips: list[np.ndarray]) -> Tensor:
    """Normalised latents [N, C, f, h, w] of the clips; kept beside the stage's log."""
    kept = folder / "preview_latents.safetensors"
    if not kept.exists():
        model = load_latest(folder).to(torch.bfloat16).to(memory_format=torch.channels_last_3d)
        with torch.no_grad():
            rows = [model.encode(pixels(clip)[None].bfloat16()).latent_dist.mode()[0] for clip in clips]
        save_file({"latents": torch.stack(rows)}, kept)
    stored = load_file(folder / "latents.safetensors")
    mean, deviation = (stored[name].view(1, -1, 1, 1, 1) for name in ("mean", "deviation"))
    return (load_file(kept)["latents"].float() - mean) / deviation


if __name__ == "__main__":
    main()
