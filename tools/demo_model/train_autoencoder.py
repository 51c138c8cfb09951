"""Stage 1: the autoencoder, from scratch, in steps of growing frames; goes on where it stopped.

    python -m tools.demo_model.train_autoencoder --folder RUNS

Small crops first (64x64x9, no KL), then whole frames (128x96x17) with the KL term and a falling learning rate.
Adam stalls at predicting the mean at 4e-4 and above; 2e-4 with betas 0.9 / 0.99 falls steadily. The decoder learns
its time input as the pipelines use it: noise of share tau / 2 in the latents at decode time tau.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from simpletuner.data.world import draw_scene, render_clip
from simpletuner.runtime.seeds import stream_seed
from tools.demo_model.muon import Muon
from tools.demo_model.parts import (
    FRAMES,
    HEIGHT,
    LATENT_SCALE,
    WIDTH,
    Average,
    Log,
    Pool,
    Team,
    add_team_arguments,
    build_autoencoder,
    load_state,
    pixels,
    save_state,
)

SEED = 6
AVERAGED_EVERY = 5
SHARED_EVERY = 8  # steps after which the processes of a team take the mean of their weights
POOL, RENEWED_EVERY = 256, 4  # clips in memory; one is replaced every so many steps
LEARNING_RATE, ADAM_LEARNING_RATE, WARM_UP = 6e-4, 3e-4, 50
KL_WEIGHT, KL_RAMP = 2e-4, (500, 1500)  # per latent number; grows between these steps
SMALL = {"size": (64, 64, 9), "batch": 4}
WHOLE = {"size": (WIDTH, HEIGHT, FRAMES), "batch": 1}
HELD_OUT = 1_000_000  # clips from this number on are never trained on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--small-steps", type=int, default=1000)
    parser.add_argument("--whole-steps", type=int, default=4600)
    parser.add_argument("--save-every", type=int, default=250)
    add_team_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    team = Team(arguments.folder, arguments.process, arguments.processes)
    train(arguments.folder, arguments.small_steps, arguments.whole_steps, arguments.save_every, team)


def train(folder: Path, small_steps: int, whole_steps: int, save_every: int, team: Team) -> None:
    log = Log(folder / f"autoencoder.{team.process}.jsonl")
    model = build_autoencoder(SEED).to(memory_format=torch.channels_last_3d)
    worker = copy.deepcopy(model).to(torch.bfloat16)  # computes; `model` holds the weights in float32
    modules, average = {"vae": model}, {"vae": Average(model, 0.98)}
    optimizer = Muon(model.parameters(), LEARNING_RATE, ADAM_LEARNING_RATE)
    state = folder / "autoencoder.safetensors"
    done = load_state(state, modules, average, optimizer) if state.exists() else 0
    worker.load_state_dict(model.state_dict())
    pool = Pool(SEED, POOL, -(-done // RENEWED_EVERY))
    log(step=done, parameters=sum(p.numel() for p in model.parameters()), torch=torch.__version__)
    total, recent, start = small_steps + whole_steps, [], time.process_time()
    for step in range(done, total):
        whole = step >= small_steps
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_share(step, small_steps, total)
        clips = draw_batch(pool.clips, step, team, **(WHOLE if whole else SMALL))
        error, kl = losses(worker, clips, step, team)
        weight = KL_WEIGHT * min(1, max(0, step - KL_RAMP[0]) / (KL_RAMP[1] - KL_RAMP[0]))
        worker.zero_grad()
        (error + weight * kl).backward()
        for master, working in zip(model.parameters(), worker.parameters(), strict=True):
            master.grad = working.grad.float()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % SHARED_EVERY == 0:
            team.share(model)
        with torch.no_grad():
            for master, working in zip(model.parameters(), worker.parameters(), strict=True):
                working.copy_(master)
        if step % AVERAGED_EVERY == 0:
            average["vae"].update(model, step)
        if step % RENEWED_EVERY == 0:
            pool.renew(step // RENEWED_EVERY)
        recent.append((error.item(), kl.item()))
        if (step + 1) % 50 == 0:
            mean = np.mean(recent[-50:], axis=0)
            log(step=step + 1, mse=round(mean[0], 5), kl=round(mean[1], 3), cpu=round(time.process_time() - start))
        if (step + 1) % save_every == 0 or step + 1 == total:
            if team.process == 0:
                save_state(state, step + 1, modules, average, optimizer)
            if team.process == team.processes - 1:
                log(step=step + 1, psnr=round(held_out_psnr(average["vae"], 12), 2))


def learning_rate_share(step: int, small_steps: int, total: int) -> float:
    """Warm-up, then flat, then a cosine down to 5 % over the second phase."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    way = max(0, step - small_steps) / max(1, total - small_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * way))


def draw_batch(clips: list[np.ndarray], step: int, team: Team, size: tuple[int, int, int], batch: int) -> Tensor:
    """Crops [batch, 3, F, H, W] in [-1, 1], some mirrored."""
    dice = np.random.default_rng(stream_seed(SEED, f"demo_model.crops.{team.process}", step))
    width, height, frames = size
    rows = []
    for _ in range(batch):
        clip = pixels(clips[dice.integers(len(clips))])
        _, length, tall, wide = clip.shape
        first, top, left = (dice.integers(n + 1) for n in (length - frames, tall - height, wide - width))
        clip = clip[:, first : first + frames, top : top + height, left : left + width]
        if dice.random() < 0.5:
            clip = clip.flip(3)
        rows.append(clip)
    return torch.stack(rows).contiguous(memory_format=torch.channels_last_3d)


def losses(model: torch.nn.Module, clips: Tensor, step: int, team: Team) -> tuple[Tensor, Tensor]:
    """Mean squared error of the reconstruction and KL per latent number."""
    generator = torch.Generator().manual_seed(stream_seed(SEED, f"demo_model.noise.{team.process}", step))
    times = 0.1 * torch.rand(len(clips), generator=generator)
    times[torch.rand(len(clips), generator=generator) < 0.3] = 0.0
    posterior = model.encode(clips.bfloat16()).latent_dist
    mean, deviation = posterior.mean.float(), posterior.std.float()
    latents = mean + deviation * torch.randn(mean.shape, generator=generator)
    share = (times / 2).view(-1, 1, 1, 1, 1)
    latents = (1 - share) * latents + share / LATENT_SCALE * torch.randn(mean.shape, generator=generator)
    decoded = model.decode(latents.bfloat16(), times.bfloat16()).sample
    mean, deviation = LATENT_SCALE * mean, LATENT_SCALE * deviation
    kl = 0.5 * (mean**2 + deviation**2 - 1 - 2 * deviation.clamp(min=1e-10).log()).mean()
    return functional.mse_loss(decoded.float(), clips), kl


@torch.no_grad()
def held_out_psnr(average: Average, clips: int) -> float:
    """Mean PSNR in dB of whole held-out clips of the plain world, with the averaged weights in float32."""
    model = build_autoencoder(SEED).eval()
    model.load_state_dict(average.weights)
    values = []
    for number in range(HELD_OUT, HELD_OUT + clips):
        clip = pixels(render_clip(draw_scene(SEED, number), FRAMES, WIDTH, HEIGHT))[None]
        decoded = model.decode(model.encode(clip).latent_dist.mode(), torch.tensor([0.05])).sample.clamp(-1, 1)
        values.append(10 * math.log10(4 / functional.mse_loss(decoded, clip).item()))
    return float(np.mean(values))


if __name__ == "__main__":
    main()
