"""Stage 5: text encoder and transformer together, from scratch, on the encoded clips; goes on where it stopped.

    python -m tools.demo_model.train_generator --folder RUNS

The transformer is called by the trainer's own `predict`, so that what is learnt is what the trainer trains and the
pipelines sample. A tenth of the captions is dropped (guidance needs it), a tenth of the clips begins with a clean
first frame (image-to-video). T5 sees its padding in a third of the batches, as in the text pipeline, and not in the
others, as in Diffusers' condition pipeline.

`--compile` needs a C++ compiler and some minutes at the first start; a step then takes half the time.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from simpletuner.data.world import draw_scene
from simpletuner.maths.sigmas import shift_sigmas
from simpletuner.models.ltxvideo.transformer import predict
from simpletuner.runtime.seeds import stream_seed
from tools.demo_model.encode_clips import HELD_OUT, HELD_OUT_CLIPS, SEED
from tools.demo_model.muon import Muon
from tools.demo_model.parts import (
    RATE,
    TOKEN_LENGTH,
    Average,
    Log,
    Team,
    add_team_arguments,
    average_of,
    build_generator,
    load_state,
    save_state,
    tokenizer,
    vocabulary,
)

LEARNING_RATE, ADAM_LEARNING_RATE, WARM_UP = 4e-3, 2e-3, 100
BATCH = 32
DROPPED, FIRST_FRAME, WITH_PADDING = 0.1, 0.1, 0.3
LONGEST = 32  # tokens; no caption of the world has more
SHARED_EVERY = 8
SHIFT, FLAT = 4.0, 0.3
POSITIONS = SimpleNamespace(positions="causal", compiled=True)  # all that `predict` asks of a checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--compile", action="store_true", help="let torch compile the loss")
    parser.add_argument("--start-from", type=Path, help="state whose averaged weights a fresh run begins with")
    parser.add_argument("--rate", type=float, default=1.0, help="share of the usual learning rates")
    add_team_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    team = Team(arguments.folder / "generator_team", arguments.process, arguments.processes)
    compute = torch.compile(batch_loss, dynamic=False) if arguments.compile else batch_loss
    train(arguments, team, compute)


class Clips:
    """Normalised latents and the tokens of their captions."""

    def __init__(self, folder: Path) -> None:
        stored = load_file(folder / "latents.safetensors")
        mean, deviation = (stored[name].view(1, -1, 1, 1, 1) for name in ("mean", "deviation"))
        latents = (stored["latents"].float() - mean) / deviation
        self.count = len(latents) - HELD_OUT_CLIPS
        numbers = [*range(self.count), *range(HELD_OUT, HELD_OUT + HELD_OUT_CLIPS)]
        words = tokenizer(vocabulary())
        self.latents = latents
        self.tokens, self.mask = tokenize(words, [draw_scene(SEED, number).caption for number in numbers])
        self.nothing, self.nothing_mask = tokenize(words, [""])
        self.pieces = len(words)


def tokenize(words: Any, captions: list[str]) -> tuple[Tensor, Tensor]:
    tokens = words(captions, padding="max_length", max_length=TOKEN_LENGTH, truncation=True, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask.bool()


def train(arguments: argparse.Namespace, team: Team, compute: Callable[..., Tensor]) -> None:
    folder, steps, save_every = arguments.folder, arguments.steps, arguments.save_every
    log = Log(folder / f"generator.{team.process}.jsonl")
    clips = Clips(folder)
    model = build_generator(SEED, clips.pieces)
    if arguments.start_from is not None:
        model.load_state_dict(average_of(arguments.start_from, "generator"))
    worker = copy.deepcopy(model).to(torch.bfloat16)
    modules, average = {"generator": model}, {"generator": Average(model, 0.998)}
    optimizer = Muon(
        model.parameters(), LEARNING_RATE, ADAM_LEARNING_RATE, matrices=hidden_layers(model), block_rows=80
    )
    state = folder / "generator.safetensors"
    done = load_state(state, modules, average, optimizer) if state.exists() else 0
    worker.load_state_dict(model.state_dict())
    log(step=done, parameters=sum(p.numel() for p in model.parameters()), clips=clips.count)
    recent, start = [], time.process_time()
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * group["peak"] * learning_rate_share(step, steps)
        worker.zero_grad()
        batch = draw_batch(clips, step, team)
        with sdpa_kernel(SDPBackend.MATH):  # twice as fast as flash attention for so few tokens on a CPU
            loss = compute(worker, batch)
            loss.backward()
        for master, working in zip(model.parameters(), worker.parameters(), strict=True):
            master.grad = torch.zeros_like(master) if working.grad is None else working.grad.float()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % SHARED_EVERY == 0:
            team.share(model)
        with torch.no_grad():
            for master, working in zip(model.parameters(), worker.parameters(), strict=True):
                working.copy_(master)
        average["generator"].update(model, step)
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            log(step=step + 1, loss=round(float(np.mean(recent[-50:])), 4), cpu=round(time.process_time() - start))
        if (step + 1) % save_every == 0 or step + 1 == steps:
            if team.process == 0:
                save_state(state, step + 1, modules, average, optimizer)
            if team.process == team.processes - 1:
                log(step=step + 1, held_out=round(held_out_loss(average["generator"], clips), 4))


def hidden_layers(model: nn.Module) -> list[nn.Parameter]:
    """Matrices inside the transformer's blocks and T5's layers: what Muon is for."""
    inside = ("transformer_blocks.", "encoder.block.")
    return [
        parameter
        for name, parameter in model.named_parameters()
        if any(part in name for part in inside) and parameter.ndim == 2 and "table" not in name and "bias" not in name
    ]


def learning_rate_share(step: int, steps: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def draw_batch(clips: Clips, step: int, team: Team) -> dict[str, Tensor]:
    """All that a step's loss depends on, always of the same shapes, so that a compiled loss is compiled once."""
    generator = torch.Generator().manual_seed(stream_seed(SEED, f"demo_model.batch.{team.process}", step))
    rows = torch.randint(clips.count, (BATCH,), generator=generator)
    tokens, mask = clips.tokens[rows].clone(), clips.mask[rows].clone()
    dropped = torch.rand(BATCH, generator=generator) < DROPPED
    tokens[dropped], mask[dropped] = clips.nothing, clips.nothing_mask
    latents = clips.latents[rows]
    with_padding = bool(torch.rand((), generator=generator) < WITH_PADDING)
    return {
        "latents": latents,
        "noise": torch.randn(latents.shape, generator=generator),
        "sigmas": draw_sigmas(generator),
        "first": torch.rand(BATCH, generator=generator) < FIRST_FRAME,
        "tokens": tokens if with_padding else tokens[:, :LONGEST],
        "mask": mask[:, :LONGEST],
    }


def draw_sigmas(generator: torch.Generator) -> Tensor:
    """Noise levels [BATCH]: mostly the logit-normal law, shifted towards noise; else uniform.

    Half of the steps of the release's schedule lie above 0.975, where shape and motion are decided and the plain law
    never looks (one draw in ten thousand).
    """
    bell = shift_sigmas(torch.sigmoid(torch.randn(BATCH, generator=generator)), SHIFT)
    flat = torch.rand(BATCH, generator=generator)
    return torch.where(torch.rand(BATCH, generator=generator) < FLAT, flat, bell)


def batch_loss(model: nn.ModuleDict, batch: dict[str, Tensor]) -> Tensor:
    """Flow matching; clips marked `first` are given their first latent frame clean, and are not scored for it.

    Where there are more tokens than the mask is wide, T5 sees the padding, which the transformer never does.
    """
    tokens, mask = batch["tokens"], batch["mask"]
    seen = tokens.shape[1] == mask.shape[1]
    embeds = model["text"](tokens, attention_mask=mask.long() if seen else None)[0][:, :LONGEST]
    latents, noise, sigmas = batch["latents"], batch["noise"], batch["sigmas"]
    first_sigmas = torch.where(batch["first"], 0.0, sigmas)
    share = sigmas.view(-1, 1, 1, 1, 1).repeat(1, 1, latents.shape[2], 1, 1)
    share[:, :, 0] = first_sigmas.view(-1, 1, 1, 1)
    noised = (1 - share) * latents + share * noise
    rates = torch.full((len(latents),), RATE)
    velocity = predict(model["transformer"], POSITIONS, noised, sigmas, embeds, mask, rates, first_sigmas)
    error = (velocity - (noise - latents)).square().mean((1, 3, 4))  # [B, F]
    scored = torch.ones_like(error)
    scored[:, 0] = 1 - batch["first"].float()
    return (error * scored).sum() / scored.sum()


@torch.no_grad()
def held_out_loss(average: Average, clips: Clips) -> float:
    """Loss on clips never trained on, with fixed noise at fixed levels, of the averaged weights."""
    model = build_generator(SEED, clips.pieces).eval()
    model.load_state_dict(average.weights)
    latents = clips.latents[clips.count :]
    batch = {
        "latents": latents,
        "noise": torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)),
        "sigmas": torch.linspace(0.05, 0.95, HELD_OUT_CLIPS),
        "first": torch.zeros(HELD_OUT_CLIPS, dtype=torch.bool),
        "tokens": clips.tokens[clips.count :],
        "mask": clips.mask[clips.count :, :LONGEST],
    }
    return batch_loss(model, batch).item()


if __name__ == "__main__":
    main()
