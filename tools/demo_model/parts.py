"""The sizes of the demo's model and what its training stages share: clips, averages, checkpoints, the log.

Everything is the real architecture in the layout of LTX-Video 0.9.5, only thin.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from simpletuner.data.world import draw_scene, draw_single, draw_subject, render_clip
from simpletuner.data.world_styles import STYLES, apply_style
from simpletuner.runtime.seeds import stream_seed

WIDTH, HEIGHT, FRAMES, RATE = 128, 96, 17, 16.0
# Decoder widths must double per level: otherwise Diffusers' time embeddings have another width.
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (16, 32, 64, 64, 64),
    "layers_per_block": (1, 1, 1, 1, 1),
    "spatio_temporal_scaling": (True, True, True, True),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
    "decoder_block_out_channels": (24, 48, 96),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "decoder_inject_noise": (False, False, False, False),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
}


def build_autoencoder(seed: int) -> AutoencoderKLLTXVideo:
    torch.manual_seed(stream_seed(seed, "demo_model.autoencoder", 0))
    return AutoencoderKLLTXVideo(**AUTOENCODER)


def pixels(pictures: np.ndarray) -> Tensor:
    """Frames uint8 [F, H, W, 3] -> float32 [3, F, H, W] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(3, 0, 1, 2).float() / 127.5 - 1


def rich_clip(seed: int, number: int) -> np.ndarray:
    """A clip for the autoencoder: mostly plain scenes, also new looks and the new shape, which adapters need later."""
    dice = random.Random(stream_seed(seed, "demo_model.rich", number))  # noqa: S311
    kind = dice.random()
    if kind < 0.1:
        return render_clip(draw_subject(seed + 1, number), FRAMES, WIDTH, HEIGHT)
    if kind < 0.4:
        scene = draw_single(dice)
        return apply_style(render_clip(scene, FRAMES, WIDTH, HEIGHT), dice.choice(STYLES), number)
    return render_clip(draw_scene(seed, number), FRAMES, WIDTH, HEIGHT)


class Pool:
    """Clips in memory; one of them is replaced by a new one at each step, so that a run never sees a fixed set."""

    def __init__(self, seed: int, size: int, step: int) -> None:
        self._seed = seed
        self.clips = [rich_clip(seed, self._number(place, step, size)) for place in range(size)]

    @staticmethod
    def _number(place: int, step: int, size: int) -> int:
        """Which clip is at `place` when `step` steps are done."""
        turns = max(0, (step - place + size - 1) // size)
        return place + turns * size

    def renew(self, step: int) -> None:
        """Call after step number `step` (from 0) is done."""
        size = len(self.clips)
        self.clips[step % size] = rich_clip(self._seed, self._number(step % size, step + 1, size))


class Average:
    """Running average of weights; the ramp lets it forget the random start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone().float() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value.detach().float(), 1 - decay)


class Team:
    """The processes that share each batch: on a busy machine two get more done than one."""

    def __init__(self, folder: Path, process: int, processes: int) -> None:
        self.process, self.processes = process, processes
        self.suffix = f".{process}" if process else ""
        if processes > 1:
            folder.mkdir(parents=True, exist_ok=True)
            meeting = f"file://{(folder / 'meeting').resolve()}"
            distributed.init_process_group("gloo", init_method=meeting, rank=process, world_size=processes)

    def part(self, rows: list[Any]) -> list[Any]:
        return rows[self.process :: self.processes]

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.processes == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape)).div_(self.processes)


def add_team_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--process", type=int, default=0, help="number of this process, from 0")
    parser.add_argument("--processes", type=int, default=1, help="processes that share the batches")


class Log:
    """Lines of JSON beside what is printed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._start = path, time.time()

    def __call__(self, **facts: Any) -> None:
        line = json.dumps({"seconds": round(time.time() - self._start, 1), **facts})
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def save_state(
    path: Path, step: int, modules: dict[str, nn.Module], average: dict[str, Average], optimizer: Any
) -> None:
    """Everything a stage needs to go on, as one safetensors file."""
    tensors: dict[str, Tensor] = {"step": torch.tensor(step)}
    for name, module in modules.items():
        tensors |= {f"model.{name}.{key}": value.detach() for key, value in module.state_dict().items()}
        tensors |= {f"average.{name}.{key}": value for key, value in average[name].weights.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
    staging = path.with_suffix(".staging")
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, staging)
    staging.replace(path)


def load_state(path: Path, modules: dict[str, nn.Module], average: dict[str, Average], optimizer: Any) -> int:
    """Restore what `save_state` wrote; gives the number of steps done."""
    tensors = load_file(path)
    for name, module in modules.items():
        for target, prefix in ((module, f"model.{name}."), (average[name], f"average.{name}.")):
            part = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if isinstance(target, Average):
                target.weights = part
            else:
                target.load_state_dict(part)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, field = key.split(".", 2)
            state.setdefault(int(number), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(tensors["step"])
