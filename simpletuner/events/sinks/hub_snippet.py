"""The code on a model card that makes a video with the uploaded weights. Pure text; a test runs it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["lora", "lycoris", "full"]

_DTYPE = "torch_dtype=torch.bfloat16"


@dataclass(frozen=True)
class Snippet:
    """What the code says; sizes in pixels, `num_frames` is 8k+1."""

    kind: Kind
    base_model: str
    repository: str
    weights_name: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    steps: int
    guidance: float
    seed: int
    frame_rate: int


def tell_usage(snippet: Snippet, *, has_average: bool) -> str:
    """The section of the card: what to install, and the code."""
    needs = "pip install diffusers transformers sentencepiece protobuf imageio imageio-ffmpeg"
    needs += {"lora": " peft", "lycoris": " lycoris-lora", "full": ""}[snippet.kind]
    parts = ["## Use", fenced(needs, "bash"), fenced(write_code(snippet), "python")]
    if has_average:
        parts.append("`ema/` holds the running average of the same weights; it often gives steadier videos.")
    return "\n\n".join(parts)


def write_code(snippet: Snippet) -> str:
    """The code: load the base model, bring the weights in, make a video, write it."""
    name, weights = quoted(snippet.repository), quoted(snippet.weights_name)
    pipeline = f"pipeline = DiffusionPipeline.from_pretrained({quoted(snippet.base_model)}, {_DTYPE})"
    classes = "DiffusionPipeline"
    if snippet.kind == "full":
        classes = "DiffusionPipeline, LTXVideoTransformer3DModel"
        load = (
            "pipeline.transformer = LTXVideoTransformer3DModel.from_pretrained(\n"
            f'    {name}, subfolder="transformer", {_DTYPE}\n)\npipeline.to(device)'
        )
    elif snippet.kind == "lycoris":
        classes += "\nfrom huggingface_hub import hf_hub_download\nfrom lycoris import create_lycoris_from_weights"
        # Applied, not merged: LyCORIS 4.1.3 scales LoKr and LoHa twice when it merges.
        load = (
            f"weights = hf_hub_download({name}, {weights})\n"
            "adapter, _ = create_lycoris_from_weights(1.0, weights, pipeline.transformer)\n"
            "adapter.apply_to()\npipeline.to(device)\nadapter.to(device, torch.bfloat16)"
        )
    else:
        load = f"pipeline.load_lora_weights({name}, weight_name={weights})\npipeline.to(device)"
    return f"""import torch
from diffusers import {classes}
from diffusers.utils import export_to_video

device = "cuda" if torch.cuda.is_available() else "cpu"
{pipeline}
{load}

frames = pipeline(
    prompt={quoted(snippet.prompt)},
    negative_prompt={quoted(snippet.negative_prompt)},
    width={snippet.width},
    height={snippet.height},
    num_frames={snippet.num_frames},
    num_inference_steps={snippet.steps},
    guidance_scale={snippet.guidance},
    decode_timestep=0.05,
    decode_noise_scale=0.025,
    generator=torch.Generator(device).manual_seed({snippet.seed}),
).frames[0]
export_to_video(frames, "output.mp4", fps={snippet.frame_rate})"""


def first_size(text: str) -> tuple[int, int]:
    """Width and height of the first of several sizes, multiples of 32; 768x512 when none can be read."""
    match = re.match(r"\s*(\d+)\s*[xX*]\s*(\d+)", text)
    width, height = (int(match[1]), int(match[2])) if match else (768, 512)
    return width // 32 * 32, height // 32 * 32


def quoted(text: str) -> str:
    """A text between quotes, for Python and for YAML."""
    # A JSON text is one of both, once it holds printable characters only.
    return json.dumps("".join(c if c.isprintable() or c in "\n\t" else " " for c in text), ensure_ascii=False)


def fenced(text: str, language: str = "") -> str:
    """A block of Markdown that no line of the text can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
