"""Stage 4: encoder and decoder go on together, with a loss for what an eye sees: edges, and no flicker.

    python -m tools.demo_model.train_together --folder RUNS [--compile]

Starts from the decoder's state, whose latents have their final size already. A mean square alone is content with soft
corners, by which the judges cannot tell a cross from a square, and hardly notices a picture whose brightness jumps
by half a grey level from frame to frame, which everybody sees. So pixels near edges weigh more, and the second
difference over time of each frame's mean colour counts on its own, squared too: the sign of such small jumps, which
an absolute error hands on, is noise that Muon makes as large as everything else.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from simpletuner.data.world import draw_single, render_clip
from simpletuner.data.world_judges import flicker, judge
from simpletuner.runtime.seeds import stream_seed
from tools.demo_model.muon import Muon
from tools.demo_model.parts import (
    FRAMES,
    HEIGHT,
    WIDTH,
    Average,
    Log,
    Pool,
    load_average,
    load_state,
    pixels,
    save_state,
)
from tools.demo_model.train_autoencoder import AVERAGED_EVERY, HELD_OUT, SEED, held_out_psnr

LEARNING_RATE, ADAM_LEARNING_RATE, WARM_UP = 2e-4, 1e-4, 100  # at 3.5e-4 it first unlearns
BATCH = 2
POOL, FIRST_CLIP, RENEWED_EVERY = 400, 10_000, 2  # other clips than the earlier stages saw
KL_WEIGHT = 2e-5
EDGES, EDGE_SLOPE = 2.0, 0.25  # an edge as steep as this, in [-1, 1] per pixel, weighs 1 + EDGES
FLICKER = 150.0  # of the squared second difference
NARROWER = -2.0  # added to the posterior's log variance at the start: the noise of stage 1 hides small corners


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--compile", action="store_true", help="let torch compile the loss")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compute = torch.compile(reconstruct, dynamic=False) if arguments.compile else reconstruct
    train(arguments.folder, arguments.steps, arguments.save_every, compute)


def train(folder: Path, steps: int, save_every: int, compute: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    log = Log(folder / "together.jsonl")
    model = load_average(folder / "decoder.safetensors", enlarge=False).to(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        model.encoder.conv_out.conv.bias[-1] += NARROWER
    worker = copy.deepcopy(model).to(torch.bfloat16)
    modules, average = {"vae": model}, {"vae": Average(model, 0.98)}
    optimizer = Muon(model.parameters(), LEARNING_RATE, ADAM_LEARNING_RATE)
    state = folder / "together.safetensors"
    done = load_state(state, modules, average, optimizer) if state.exists() else 0
    worker.load_state_dict(model.state_dict())
    pool = Pool(SEED, POOL, FIRST_CLIP + -(-done // RENEWED_EVERY))
    log(step=done)
    recent, start = [], time.process_time()
    pairs = list(zip(model.parameters(), worker.parameters(), strict=True))
    for step in range(done, steps):
        way = step / max(1, steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1, (step + 1) / WARM_UP) * max(0.01, 1 - way)
        worker.zero_grad()
        loss, parts = batch_loss(compute, worker, draw_batch(pool.clips, step))
        loss.backward()
        for master, working in pairs:
            master.grad = working.grad.float()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for master, working in pairs:
                working.copy_(master)
        if step % AVERAGED_EVERY == 0:
            average["vae"].update(model, step)
        if step % RENEWED_EVERY == 0:
            pool.renew(FIRST_CLIP + step // RENEWED_EVERY)
        recent.append(parts.tolist())
        if (step + 1) % 50 == 0:
            square, jumps, kl, noise = np.mean(recent[-50:], axis=0).tolist()
            log(step=step + 1, mse=round(square, 5), flicker=round(127.5 * jumps, 3),
                kl=round(kl, 3), noise=round(noise, 3), cpu=round(time.process_time() - start))  # fmt: skip
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save_state(state, step + 1, modules, average, optimizer)
            log(step=step + 1, psnr=round(held_out_psnr(average["vae"], 12), 2), **seen_through(worker, 40))


def draw_batch(clips: list[np.ndarray], step: int) -> dict[str, Tensor]:
    """All that a step's loss depends on, always of the same shapes."""
    generator = torch.Generator().manual_seed(stream_seed(SEED, "demo_model.together", step))
    rows = torch.randint(len(clips), (BATCH,), generator=generator).tolist()
    chosen = torch.stack([pixels(clips[row]) for row in rows])
    if torch.rand((), generator=generator) < 0.5:
        chosen = chosen.flip(4)
    times = 0.1 * torch.rand(BATCH, generator=generator)
    times[torch.rand(BATCH, generator=generator) < 0.3] = 0.0
    shape = (2, BATCH, 128, (FRAMES - 1) // 8 + 1, HEIGHT // 32, WIDTH // 32)
    return {
        "clips": chosen.contiguous(memory_format=torch.channels_last_3d),
        "times": times,
        "noise": torch.randn(shape, generator=generator),
    }


def batch_loss(
    compute: Callable[..., tuple[Tensor, Tensor, Tensor]], model: nn.Module, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The loss, and its parts [4] for the log: squared error, flicker, KL, deviation of the posterior."""
    decoded, mean, deviation = compute(model, batch)
    kl = 0.5 * (mean**2 + deviation**2 - 1 - 2 * deviation.clamp(min=1e-10).log()).mean()
    loss, square, jumps = seen_error(decoded, batch["clips"])
    return loss + KL_WEIGHT * kl, torch.stack([square, jumps, kl, deviation.mean()]).detach()


def reconstruct(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Clips through encoder and decoder, in float32, and the posterior's mean and deviation."""
    noise = batch["noise"]
    posterior = model.encode(batch["clips"].bfloat16()).latent_dist
    mean, deviation = posterior.mean.float(), posterior.std.float()
    share = (batch["times"] / 2).view(-1, 1, 1, 1, 1)  # as the pipelines mix it in
    latents = (1 - share) * (mean + deviation * noise[0]) + share * noise[1]
    return model.decode(latents.bfloat16(), batch["times"].bfloat16()).sample.float(), mean, deviation


def seen_error(decoded: Tensor, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Error of decoded clips [B, 3, F, H, W] as an eye weighs it; the plain squared error and the flicker in it."""
    error = decoded - clips
    means = error.mean((3, 4))  # [B, 3, F]
    jumps = means[..., 2:] - 2 * means[..., 1:-1] + means[..., :-2]
    weighted = (edge_weights(clips) * error.square()).mean()
    return weighted + FLICKER * jumps.square().mean(), error.square().mean(), jumps.abs().mean()


def edge_weights(clips: Tensor) -> Tensor:
    """Weights [B, 1, F, H, W] with mean 1: large within a pixel of an edge of the true clip."""
    across = functional.pad((clips[..., 1:] - clips[..., :-1]).abs().amax(1, keepdim=True), (0, 1))
    down = functional.pad((clips[..., 1:, :] - clips[..., :-1, :]).abs().amax(1, keepdim=True), (0, 0, 0, 1))
    steep = functional.max_pool3d(torch.maximum(across, down), (1, 3, 3), 1, (0, 1, 1))
    weight = 1 + EDGES * (steep / EDGE_SLOPE).clamp(max=1)
    return weight / weight.mean((2, 3, 4), keepdim=True)


@torch.no_grad()
def seen_through(worker: nn.Module, count: int) -> dict[str, float]:
    """What the judges see of held-out clips after the autoencoder: shapes right, of `count`, and flicker."""
    right, jumps = 0, []
    for number in range(count):
        scene = draw_single(random.Random(HELD_OUT + number))
        clip = pixels(render_clip(scene, FRAMES, WIDTH, HEIGHT))[None].bfloat16()
        latents = worker.encode(clip.contiguous(memory_format=torch.channels_last_3d)).latent_dist.mode()
        decoded = worker.decode(latents, torch.tensor([0.05], dtype=torch.bfloat16)).sample.float().clamp(-1, 1)
        video = ((decoded[0].permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
        right += judge(video).shape == scene.things[0].shape
        jumps.append(flicker(video))
    return {"shapes_right": right, "flicker": round(float(np.mean(jumps)), 3)}


if __name__ == "__main__":
    main()
