"""The sizes of the demo's model and what its training stages share: clips, averages, checkpoints, the log.

Everything is the real architecture in the layout of LTX-Video 0.9.5, only thin.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from simpletuner.data.world import draw_scene, draw_single, draw_subject, render_clip
from simpletuner.data.world_styles import STYLES, apply_style
from simpletuner.models.ltxvideo.frame_times import accept_frame_times
from simpletuner.models.ltxvideo.miniature import CHARACTERS, train_vocabulary, write_tokenizer
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

START_LOG_VARIANCE = -9.0
# Fresh latents are about a quarter as large as the noise of the pipelines expects (which mix in 0.025 of normal
# noise); while the autoencoder learns, noise is made smaller instead, and `enlarge_latents` settles it at the end.
LATENT_SCALE = 4.0


def build_autoencoder(seed: int) -> AutoencoderKLLTXVideo:
    torch.manual_seed(stream_seed(seed, "demo_model.autoencoder", 0))
    model = AutoencoderKLLTXVideo(**AUTOENCODER)
    with torch.no_grad():
        _start_smooth(model)
    return model


def _start_smooth(model: AutoencoderKLLTXVideo) -> None:
    """Let the fresh autoencoder begin as a blurred copy: average colours in, the same colours out.

    With the usual start the decoder's depth-to-space layers turn every latent into a random texture, and unlearning
    that takes thousands of steps (it stays at a colourless blur of 16 dB).
    """
    # Residual blocks start as nothing, so that the signal passes.
    for name, parameter in model.named_parameters():
        if ".resnets." in name and ".conv2." in name:
            nn.init.zeros_(parameter)
    # A constant channel keeps the size of the others through the norms, which divide by their common size.
    for first in (model.encoder.conv_in.conv, model.decoder.conv_in.conv):
        first.weight[0] = 0
        first.bias[0] = 1
    # The posterior starts narrow: with its usual deviation of 1 the noise hides all that is encoded.
    head = model.encoder.conv_out.conv
    head.weight[-1] = 0
    head.bias[-1] = START_LOG_VARIANCE
    for block in model.decoder.up_blocks:
        _start_as_repetition(block.upsamplers[0].conv.conv)
    last = model.decoder.conv_out.conv  # channels (colour, row, column) of a 4 x 4 patch
    same = last.weight.view(3, 16, *last.weight.shape[1:])[:, :1] * 3
    last.weight.copy_(same.expand(3, 16, *last.weight.shape[1:]).reshape(last.weight.shape))
    nn.init.zeros_(last.bias)


def _start_as_repetition(conv: nn.Conv3d) -> None:
    """A depth-to-space upsampler begins by repeating half of its input's channels, rotated, at all 2 x 2 x 2 places.

    The layer adds its input's channels, spread over the places; the centre of the kernel takes that away again.
    """
    outputs, inputs = conv.weight.shape[0] // 8, conv.weight.shape[1]
    mix = torch.zeros(outputs, inputs)
    mix[0, 0] = 1
    nn.init.orthogonal_(mix[1:, 1:])
    conv.weight.mul_(0.1)
    nn.init.zeros_(conv.bias)
    for channel in range(outputs):
        for place in range(8):
            row = conv.weight[channel * 8 + place, :, 1, 1, 1]
            row.add_(mix[channel])
            row[channel % (inputs // 8) * 8 + place] -= 1


def enlarge_latents(model: AutoencoderKLLTXVideo) -> None:
    """Multiply the latents by `LATENT_SCALE` inside the encoder's last and the decoder's first layer."""
    last, first = model.encoder.conv_out.conv, model.decoder.conv_in.conv
    with torch.no_grad():
        last.weight[:-1].mul_(LATENT_SCALE)
        last.bias[:-1].mul_(LATENT_SCALE)
        last.bias[-1].add_(2 * math.log(LATENT_SCALE))
        first.weight.div_(LATENT_SCALE)


def load_average(state: Path, *, enlarge: bool = True) -> AutoencoderKLLTXVideo:
    """The averaged autoencoder of a training state, in float32 but rounded to bf16 as it is shipped.

    `enlarge`: its latents are still those of stage 1 (see `LATENT_SCALE`).
    """
    model = build_autoencoder(0).eval()
    model.load_state_dict(average_of(state, "vae"))
    if enlarge:
        enlarge_latents(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model


def average_of(state: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights of a part of a training state."""
    prefix = f"average.{name}."
    return {key.removeprefix(prefix): value for key, value in load_file(state).items() if key.startswith(prefix)}


def load_latest(folder: Path) -> AutoencoderKLLTXVideo:
    """The autoencoder as the last stage that trained it left it: both together, the decoder alone, or the first."""
    for later in ("together.safetensors", "decoder.safetensors"):
        if (folder / later).exists():
            return load_average(folder / later, enlarge=False)
    return load_average(folder / "autoencoder.safetensors")


def pixels(pictures: np.ndarray) -> Tensor:
    """Frames uint8 [F, H, W, 3] -> float32 [3, F, H, W] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(3, 0, 1, 2).float() / 127.5 - 1


def rich_clip(seed: int, number: int) -> np.ndarray:
    """A clip for the autoencoder: mostly plain scenes, also new looks and the new shape, which adapters need later."""
    dice = random.Random(stream_seed(seed, "demo_model.rich", number))
    kind = dice.random()
    if kind < 0.07:
        return render_clip(draw_subject(seed + 1, number), FRAMES, WIDTH, HEIGHT)
    if kind < 0.25:
        scene = draw_single(dice)
        return apply_style(render_clip(scene, FRAMES, WIDTH, HEIGHT), dice.choice(STYLES), number)
    return render_clip(draw_scene(seed, number), FRAMES, WIDTH, HEIGHT)


TEXT_WIDTH, TOKEN_LENGTH = 64, 128
TEXT_ENCODER: dict[str, Any] = {
    "d_model": TEXT_WIDTH,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "use_cache": False,
    "dropout_rate": 0.0,
}
TRANSFORMER: dict[str, Any] = {
    "num_layers": 4,
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "cross_attention_dim": 160,
    "caption_channels": TEXT_WIDTH,
}
# Words of the world and of its neighbours; any other word is spelt.
OTHER_WORDS = (
    "video clip style black white film grain sepia outline drawing pixelated pixel art old photo sketch bright dark "
    "the of in and with over under from into slowly quickly fast slow big tiny star flower heart ball box line dot"
)


def vocabulary() -> bytes:
    """The sentencepiece model of the demo's tokenizer."""
    captions = [draw_scene(0, number).caption for number in range(600)]
    captions += [draw_subject(0, number).caption for number in range(20)]
    words = sorted({word.strip(".,") for caption in captions for word in caption.split()} | set(OTHER_WORDS.split()))
    # Often enough that each word becomes a piece of its own.
    return train_vocabulary([*captions, *CHARACTERS, *(words * 100)], 512, normalization="identity")


def tokenizer(model: bytes) -> Any:
    """The tokenizer as a user loads it, from a sentencepiece model."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder) / "tokenizer", model)
        return AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")


def build_generator(seed: int, pieces: int) -> nn.ModuleDict:
    """Text encoder and transformer with fresh weights, to be trained together."""
    torch.manual_seed(stream_seed(seed, "demo_model.generator", 0))
    text = T5EncoderModel(T5Config(vocab_size=-(-pieces // 64) * 64, **TEXT_ENCODER))
    transformer = LTXVideoTransformer3DModel(**TRANSFORMER)
    accept_frame_times(transformer)
    with torch.no_grad():
        # Blocks start as nothing and the output as zero: the first thing learnt is the mean.
        for block in transformer.transformer_blocks:
            for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
                nn.init.zeros_(layer.weight)
        nn.init.zeros_(transformer.proj_out.weight)
        nn.init.zeros_(transformer.proj_out.bias)
    return nn.ModuleDict({"text": text, "transformer": transformer})


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
    """Processes that train the same model on different clips and take the mean of their weights now and then.

    On a busy machine several of them get more done than one. A team of one does nothing here.
    """

    def __init__(self, folder: Path, process: int, processes: int) -> None:
        self.process, self.processes = process, processes
        if processes > 1:
            folder.mkdir(parents=True, exist_ok=True)
            meeting = f"file://{(folder / 'meeting').resolve()}"
            distributed.init_process_group("gloo", init_method=meeting, rank=process, world_size=processes)

    def share(self, model: nn.Module) -> None:
        """Replace the weights by their mean over the processes."""
        if self.processes == 1:
            return
        weights = [parameter.data for parameter in model.parameters()]
        flat = torch.cat([weight.flatten() for weight in weights])
        distributed.all_reduce(flat)
        flat.div_(self.processes)
        for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
            weight.copy_(part.view(weight.shape))


def add_team_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--process", type=int, default=0, help="number of this process, from 0")
    parser.add_argument("--processes", type=int, default=1, help="processes that train together")


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
