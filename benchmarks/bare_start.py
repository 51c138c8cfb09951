"""The bare program of `start_up.py`: what one would type in ten minutes to train a LoRA on a folder of clips.

    python benchmarks/bare_start.py FOLDER

FOLDER holds model/ and clips/ as `start_up.write_project` writes them. Without FOLDER/encoded every caption and clip is
encoded into it first, one after the other. Two steps are taken; the time when the first was done is printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

WIDTH, HEIGHT, FRAMES, RATE, TOKENS, BATCH = 256, 192, 49, 25.0, 128, 2
DTYPE = torch.bfloat16


@torch.no_grad()
def encode(folder: Path, encoded: Path) -> None:
    """Captions, then clips, each into a file of its own."""
    from transformers import AutoTokenizer, T5EncoderModel

    encoded.mkdir()
    clips = sorted((folder / "clips").glob("*.mp4"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model" / "tokenizer")
    encoder: Any = T5EncoderModel.from_pretrained(folder / "model" / "text_encoder", dtype=DTYPE)
    for clip in clips:
        caption = clip.with_suffix(".txt").read_text(encoding="utf-8").strip()
        found = tokenizer(caption, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        embeds = encoder(found.input_ids, found.attention_mask)[0][0]
        save_file({"embeds": embeds, "mask": found.attention_mask[0].bool()}, encoded / f"{clip.stem}.text")
    del encoder
    autoencoder: Any = AutoencoderKLLTXVideo.from_pretrained(folder / "model" / "vae", torch_dtype=DTYPE)
    encode_clips(autoencoder, clips, encoded)


@torch.no_grad()
def encode_clips(autoencoder: Any, clips: Sequence[Path], encoded: Path) -> None:
    """One clip after the other, nothing but PyAV, Diffusers and safetensors."""
    mean, std = (tensor.view(1, -1, 1, 1, 1) for tensor in (autoencoder.latents_mean, autoencoder.latents_std))
    for clip in clips:
        frames = []
        with av.open(str(clip)) as container:
            for frame in container.decode(video=0):
                frames.append(frame.reformat(WIDTH, HEIGHT, "rgb24").to_ndarray())
                if len(frames) == FRAMES:
                    break
        pixels = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latents = autoencoder.encode(pixels.to(DTYPE)).latent_dist.mode().float()
        save_file({"latents": ((latents - mean) / std)[0].to(DTYPE)}, encoded / f"{clip.stem}.latents")


def train(folder: Path, encoded: Path) -> float:
    """Two steps of a rank-16 LoRA; when the first was done."""
    transformer: Any = LTXVideoTransformer3DModel.from_pretrained(folder / "model" / "transformer", torch_dtype=DTYPE)
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    names = sorted(path.stem for path in encoded.glob("*.latents"))
    done = 0.0
    for step in range(2):
        chosen = names[BATCH * step : BATCH * (step + 1)]
        latents = torch.stack([load_file(encoded / f"{name}.latents")["latents"] for name in chosen]).float()
        texts = [load_file(encoded / f"{name}.text") for name in chosen]
        loss = loss_of(
            transformer, latents, *(torch.stack([text[key] for text in texts]) for key in ("embeds", "mask"))
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 2.0)
        optimizer.step()
        optimizer.zero_grad()
        done = done or time.time()
    return done


def loss_of(transformer: Any, latents: Tensor, embeds: Tensor, mask: Tensor) -> Tensor:
    """Flow matching: latents [B, C, F, H, W] mixed with noise, and the model's error in their difference."""
    _, _, frames, height, width = latents.shape
    noise, sigmas = torch.randn_like(latents), torch.rand(len(latents))
    noised = torch.lerp(latents, noise, sigmas.view(-1, 1, 1, 1, 1))
    predicted = transformer(
        hidden_states=noised.flatten(2).transpose(1, 2).to(DTYPE),
        encoder_hidden_states=embeds,
        timestep=1000 * sigmas,
        encoder_attention_mask=mask,
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(8 / RATE, 32, 32),
        return_dict=False,
    )[0]
    return functional.mse_loss(predicted.float(), (noise - latents).flatten(2).transpose(1, 2))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if not (place / "encoded").is_dir():
        encode(place, place / "encoded")
    print(train(place, place / "encoded"))
