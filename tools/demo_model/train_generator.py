"""Stage 4: text encoder and transformer together, from scratch, on the encoded clips; goes on where it stopped.

    python -m tools.demo_model.train_generator --folder RUNS

The transformer is called by the trainer's own `predict`, so that what is learnt is what the trainer trains and the
pipelines sample. A tenth of the captions is dropped (guidance needs it), a tenth of the batches begins with a clean
first frame (image-to-video). T5 sees its padding in most batches, as in the text pipeline, and not in the others, as
in Diffusers' condition pipeline.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
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
    build_generator,
    load_state,
    save_state,
    tokenizer,
    vocabulary,
)

LEARNING_RATE, ADAM_LEARNING_RATE, WARM_UP = 4e-3, 2e-3, 100
BATCH = 32
DROPPED, FIRST_FRAME, WITH_PADDING = 0.1, 0.1, 0.3
SHARED_EVERY = 8
SHIFT, FLAT = 4.0, 0.3
POSITIONS = SimpleNamespace(positions="causal")  # all that `predict` asks of a checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--save-every", type=int, default=500)
    add_team_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    team = Team(arguments.folder / "generator_team", arguments.process, arguments.processes)
    train(arguments.folder, arguments.steps, arguments.save_every, team)


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


def train(folder: Path, steps: int, save_every: int, team: Team) -> None:
    log = Log(folder / f"generator.{team.process}.jsonl")
    clips = Clips(folder)
    model = build_generator(SEED, clips.pieces)
    worker = copy.deepcopy(model).to(torch.bfloat16)
    modules, average = {"generator": model}, {"generator": Average(model, 0.998)}
    optimizer = Muon(model.parameters(), LEARNING_RATE, ADAM_LEARNING_RATE, matrices=hidden_layers(model))
    state = folder / "generator.safetensors"
    done = load_state(state, modules, average, optimizer) if state.exists() else 0
    worker.load_state_dict(model.state_dict())
    log(step=done, parameters=sum(p.numel() for p in model.parameters()), clips=clips.count)
    recent, start = [], time.process_time()
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_share(step, steps)
        worker.zero_grad()
        with sdpa_kernel(SDPBackend.MATH):  # twice as fast as flash attention for so few tokens on a CPU
            loss = batch_loss(worker, clips, step, team)
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


def batch_loss(model: nn.ModuleDict, clips: Clips, step: int, team: Team) -> Tensor:
    generator = torch.Generator().manual_seed(stream_seed(SEED, f"demo_model.batch.{team.process}", step))
    rows = torch.randint(clips.count, (BATCH,), generator=generator)
    tokens, mask = clips.tokens[rows].clone(), clips.mask[rows].clone()
    dropped = torch.rand(BATCH, generator=generator) < DROPPED
    tokens[dropped], mask[dropped] = clips.nothing, clips.nothing_mask
    chance = torch.rand(2, generator=generator)
    embeds, mask = features(model["text"], tokens, mask, padding=bool(chance[0] < WITH_PADDING))
    sigmas = draw_sigmas(generator)
    return velocity_loss(
        model["transformer"], clips.latents[rows], sigmas, embeds, mask, generator, bool(chance[1] < FIRST_FRAME)
    )


def draw_sigmas(generator: torch.Generator) -> Tensor:
    """Noise levels [BATCH]: mostly the logit-normal law, shifted towards noise; else uniform.

    Half of the steps of the release's schedule lie above 0.975, where shape and motion are decided and the plain law
    never looks (one draw in ten thousand).
    """
    bell = shift_sigmas(torch.sigmoid(torch.randn(BATCH, generator=generator)), SHIFT)
    flat = torch.rand(BATCH, generator=generator)
    return torch.where(torch.rand(BATCH, generator=generator) < FLAT, flat, bell)


def features(text: nn.Module, tokens: Tensor, mask: Tensor, *, padding: bool) -> tuple[Tensor, Tensor]:
    """T5's features, cut to the longest caption: what lies beyond is masked in the transformer anyway."""
    longest = int(mask.sum(1).max())
    if padding:
        return text(tokens)[0][:, :longest], mask[:, :longest]
    tokens, mask = tokens[:, :longest], mask[:, :longest]
    return text(tokens, attention_mask=mask.long())[0], mask


def velocity_loss(
    transformer: nn.Module,
    latents: Tensor,
    sigmas: Tensor,
    embeds: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    first_frame: bool,
) -> Tensor:
    """Flow matching; with `first_frame` the first latent frame is given clean and not scored."""
    noise = torch.randn(latents.shape, generator=generator)
    share = sigmas.view(-1, 1, 1, 1, 1).expand_as(latents).clone()
    if first_frame:
        share[:, :, 0] = 0
    noised = (1 - share) * latents + share * noise
    first = torch.zeros_like(sigmas) if first_frame else None
    rates = torch.full((len(latents),), RATE)
    error = predict(transformer, POSITIONS, noised, sigmas, embeds, mask, rates, first) - (noise - latents)
    return error[:, :, 1:].square().mean() if first_frame else error.square().mean()


@torch.no_grad()
def held_out_loss(average: Average, clips: Clips) -> float:
    """Loss on clips never trained on, with fixed noise at fixed levels, of the averaged weights."""
    model = build_generator(SEED, clips.pieces).eval()
    model.load_state_dict(average.weights)
    rows = slice(clips.count, None)
    embeds, mask = features(model["text"], clips.tokens[rows], clips.mask[rows], padding=True)
    sigmas = torch.linspace(0.05, 0.95, HELD_OUT_CLIPS)
    generator = torch.Generator().manual_seed(0)
    return velocity_loss(model["transformer"], clips.latents[rows], sigmas, embeds, mask, generator, False).item()


if __name__ == "__main__":
    main()
