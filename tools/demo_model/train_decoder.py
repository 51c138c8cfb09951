"""Stage 3: the decoder goes on learning while the encoder, and so the latent space, stays as it is.

    python -m tools.demo_model.train_decoder --folder RUNS

Whole frames. Besides the noise that the pipelines mix in, latents get some more, unannounced: generated latents are
never as exact as encoded ones.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from simpletuner.runtime.seeds import stream_seed
from tools.demo_model.muon import Muon
from tools.demo_model.parts import (
    Average,
    Log,
    Team,
    add_team_arguments,
    build_autoencoder,
    load_average,
    load_state,
    pixels,
    rich_clip,
    save_state,
)
from tools.demo_model.train_autoencoder import AVERAGED_EVERY, SEED, SHARED_EVERY, held_out_psnr

LEARNING_RATE, ADAM_LEARNING_RATE, WARM_UP = 6e-4, 3e-4, 50
BATCH, CLIPS = 2, 600
UNANNOUNCED = 0.03  # most further noise, as a share of the latents' deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--save-every", type=int, default=250)
    add_team_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    team = Team(arguments.folder / "decoder_team", arguments.process, arguments.processes)
    train(arguments.folder, arguments.steps, arguments.save_every, team)


def train(folder: Path, steps: int, save_every: int, team: Team) -> None:
    log = Log(folder / f"decoder.{team.process}.jsonl")
    model = load_average(folder / "autoencoder.safetensors").to(memory_format=torch.channels_last_3d)
    deviation = load_file(folder / "latents.safetensors")["deviation"].view(1, -1, 1, 1, 1)
    clips, latents = encoded(model, folder, team.process)
    model.encoder.requires_grad_(False)
    worker = copy.deepcopy(model).to(torch.bfloat16)
    modules, average = {"vae": model}, {"vae": Average(model, 0.98)}
    optimizer = Muon(model.decoder.parameters(), LEARNING_RATE, ADAM_LEARNING_RATE)
    state = folder / "decoder.safetensors"
    done = load_state(state, modules, average, optimizer) if state.exists() else 0
    worker.load_state_dict(model.state_dict())
    log(step=done, clips=len(clips))
    recent, start = [], time.process_time()
    pairs = list(zip(model.decoder.parameters(), worker.decoder.parameters(), strict=True))
    for step in range(done, steps):
        for group in optimizer.param_groups:
            way = step / max(1, steps)
            group["lr"] = group["peak"] * min(1, (step + 1) / WARM_UP) * (0.05 + 0.475 * (1 + math.cos(math.pi * way)))
        generator = torch.Generator().manual_seed(stream_seed(SEED, f"demo_model.decoder.{team.process}", step))
        rows = torch.randint(len(clips), (BATCH,), generator=generator).tolist()
        target = torch.stack([pixels(clips[row]) for row in rows])
        times = 0.1 * torch.rand(BATCH, generator=generator)
        times[torch.rand(BATCH, generator=generator) < 0.3] = 0.0
        share = (times / 2).view(-1, 1, 1, 1, 1)
        codes = latents[rows].float()
        more = UNANNOUNCED * torch.rand(BATCH, 1, 1, 1, 1, generator=generator) * deviation
        codes = (1 - share) * codes + share * torch.randn(codes.shape, generator=generator)
        codes = codes + more * torch.randn(codes.shape, generator=generator)
        decoded = worker.decode(codes.bfloat16(), times.bfloat16()).sample
        error = functional.mse_loss(decoded.float(), target)
        worker.zero_grad()
        error.backward()
        for master, working in pairs:
            master.grad = working.grad.float()
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % SHARED_EVERY == 0:
            team.share(model.decoder)
        with torch.no_grad():
            for master, working in pairs:
                working.copy_(master)
        if step % AVERAGED_EVERY == 0:
            average["vae"].update(model, step)
        recent.append(error.item())
        if (step + 1) % 50 == 0:
            log(step=step + 1, mse=round(float(np.mean(recent[-50:])), 5), cpu=round(time.process_time() - start))
        if (step + 1) % save_every == 0 or step + 1 == steps:
            if team.process == 0:
                save_state(state, step + 1, modules, average, optimizer)
            if team.process == team.processes - 1:
                log(step=step + 1, psnr=round(held_out_psnr(average["vae"], 12), 2))


def encoded(model: torch.nn.Module, folder: Path, process: int) -> tuple[list[np.ndarray], torch.Tensor]:
    """Clips of the rich kind, others for each process, and their latents, which do not change any more."""
    clips = [rich_clip(SEED + 1, CLIPS * process + number) for number in range(CLIPS)]
    kept = folder / f"decoder_latents.{process}.safetensors"
    if not kept.exists():
        worker = build_autoencoder(0).to(torch.bfloat16).to(memory_format=torch.channels_last_3d)
        worker.load_state_dict(model.state_dict())
        with torch.no_grad():
            rows = [worker.encode(pixels(clip)[None].bfloat16()).latent_dist.mode()[0] for clip in clips]
        save_file({"latents": torch.stack(rows)}, kept)
    return clips, load_file(kept)["latents"]


if __name__ == "__main__":
    main()
