"""The model card of an adapter: README.md for the Hub, made of what the run folder knows.

Pure text from facts; the only look at the disk is which sample videos there are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.config.catalogs.families import FAMILIES

VIDEO_FOLDER = "validation_videos"
WEIGHTS_NAME = "pytorch_lora_weights.safetensors"

LICENSE_NAME = "ltx-video-open-weights"
LICENSE_LINK = "https://huggingface.co/Lightricks/LTX-Video"
_VIDEO = re.compile(r"(?:base|step_(?P<step>\d+)(?P<ema>_ema)?)_(?P<rest>.+)_(?P<size>\d+x\d+)\.(?:mp4|png)")
_WEIGHTS = {"base": "base model", "adapter": "with this adapter", "ema": "with the averaged weights"}
# The settings a reader asks for first; the whole list goes along as a file.
_SETTINGS = (
    "model_type", "lora_type", "lora_rank", "lora_alpha", "optimizer", "learning_rate", "lr_scheduler",
    "lr_warmup_steps", "train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
    "mixed_precision", "base_model_precision", "max_grad_norm", "grad_clip_method", "flow_schedule_shift",
    "flow_schedule_auto_shift", "caption_dropout_probability", "use_ema", "ema_decay", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class SampleVideo:
    """One validation video; `path` is relative to the run folder."""

    nickname: str
    prompt: str
    weights: str  # "base", "adapter", "ema"
    step: int
    size: str
    path: str


@dataclass(frozen=True)
class CardFacts:
    """What the card tells.

    Attributes:
        repository: "owner/name".
        run_name: Name of the run.
        step: Steps trained.
        options: Option -> value, without secrets.
        datasets: Entries of the data set file as in `RunConfig.as_document()`.
        prompts: Validation prompts: {"nickname", "prompt"}.
        videos: Samples to show.
        has_average: Whether averaged weights go along.
    """

    repository: str
    run_name: str
    step: int
    options: Mapping[str, Any]
    datasets: Sequence[Mapping[str, Any]] = ()
    prompts: Sequence[Mapping[str, str]] = ()
    videos: Sequence[SampleVideo] = ()
    has_average: bool = False

    @property
    def base_model(self) -> str:
        """The repository of the base model; a local folder is called by its last name only."""
        named = str(self.options.get("pretrained_model_name_or_path") or "")
        if not named:
            family = FAMILIES[str(self.options.get("model_family") or "ltxvideo")]
            return family.checkpoint(self.options.get("model_flavour"))
        is_repository = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", named) is not None and not Path(named).exists()
        return named if is_repository else Path(named).name

    @property
    def is_lycoris(self) -> bool:
        return self.options.get("lora_type") == "lycoris"


def find_videos(folder: Path, prompts: Sequence[Mapping[str, str]], last_step: int) -> list[SampleVideo]:
    """The newest video of each prompt, size and kind of weights, up to `last_step`; the base model's last."""
    told = {prompt["nickname"]: prompt["prompt"] for prompt in prompts}
    newest: dict[tuple[str, str, str], SampleVideo] = {}
    for path in sorted((folder / VIDEO_FOLDER).glob("*")):
        match = _VIDEO.fullmatch(path.name)
        # A poster stands beside its video; a picture without one is a video of one frame.
        if not match or match["rest"] not in told or (path.suffix == ".png" and path.with_suffix(".mp4").exists()):
            continue
        weights = "base" if match["step"] is None else "ema" if match["ema"] else "adapter"
        step = int(match["step"] or 0)
        key = (match["rest"], match["size"], weights)
        if step <= last_step and (key not in newest or newest[key].step < step):
            where = path.relative_to(folder).as_posix()
            newest[key] = SampleVideo(match["rest"], told[match["rest"]], weights, step, match["size"], where)
    order = list(told)
    rank = {"adapter": 0, "ema": 1, "base": 2}
    return sorted(newest.values(), key=lambda v: (rank[v.weights], order.index(v.nickname), v.size))


def write_card(facts: CardFacts) -> str:
    """README.md: front matter, samples, how to use it, how it was trained, the licence."""
    sections = (
        _front_matter(facts),
        f"# {facts.run_name}",
        _opening(facts),
        str(facts.options.get("model_card_note") or ""),
        _samples(facts),
        _usage(facts),
        _training(facts),
        _licence(facts),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(facts: CardFacts) -> str:
    is_safe = bool(facts.options.get("model_card_safe_for_work"))
    tags = ["ltx-video", "ltxvideo", "text-to-video", "diffusers", "simpletuner", "lora", "template:sd-lora"]
    tags += ["lycoris" if facts.is_lycoris else "standard", "safe-for-work" if is_safe else "not-for-all-audiences"]
    lines = ["---", "license: other", f"license_name: {LICENSE_NAME}", f"license_link: {LICENSE_LINK}"]
    if "/" in facts.base_model:
        lines += [f"base_model: {_quoted(facts.base_model)}", "base_model_relation: adapter"]
    lines += ["library_name: diffusers", "pipeline_tag: text-to-video", "inference: true", "tags:"]
    lines += [f"- {_quoted(tag)}" for tag in tags]
    shown = [video for video in facts.videos if video.weights != "base"]
    if shown:
        negative = str(facts.options.get("validation_negative_prompt") or "")
        lines.append("widget:")
        for video in shown:
            lines += [f"- text: {_quoted(video.prompt)}", "  parameters:", f"    negative_prompt: {_quoted(negative)}",
                      "  output:", f"    url: {_quoted(video.path)}"]  # fmt: skip
    return "\n".join([*lines, "---"])


def _opening(facts: CardFacts) -> str:
    kind = "LyCORIS adapter" if facts.is_lycoris else "LoRA"
    text = f"A {kind} for [{facts.base_model}](https://huggingface.co/{facts.base_model})"
    if "/" not in facts.base_model:
        text = f"A {kind} for `{facts.base_model}`"
    text += f", trained for {facts.step} steps with SimpleTuner."
    if facts.prompts:
        text += f"\n\nThe main validation prompt was:\n\n{_fenced(facts.prompts[0]['prompt'])}"
    return text


def _samples(facts: CardFacts) -> str:
    if not facts.videos:
        return ""
    rows = ["| prompt | size | made | file |", "|---|---|---|---|"]
    for video in facts.videos:
        made = _WEIGHTS[video.weights] + ("" if video.weights == "base" else f", step {video.step}")
        file = f"[{_cell(Path(video.path).name)}](./{video.path})"
        rows.append(f"| {_cell(video.nickname)} | {video.size} | {made} | {file} |")
    has_gallery = any(video.weights != "base" for video in facts.videos)
    return "\n\n".join(["## Samples", *(["<Gallery />"] if has_gallery else []), "\n".join(rows)])


def _usage(facts: CardFacts) -> str:
    options = facts.options
    width, height = _first_size(str(options.get("validation_resolution") or "768x512"))
    prompt = facts.prompts[0]["prompt"] if facts.prompts else "A detailed description of the video."
    load = f'pipeline.load_lora_weights("{facts.repository}", weight_name="{WEIGHTS_NAME}")\npipeline.to("cuda")'
    imports = ""
    if facts.is_lycoris:
        imports = "from huggingface_hub import hf_hub_download\nfrom lycoris import create_lycoris_from_weights\n"
        load = (
            f'weights = hf_hub_download("{facts.repository}", "{WEIGHTS_NAME}")\n'
            "wrapper, _ = create_lycoris_from_weights(1.0, weights, pipeline.transformer)\n"
            'wrapper.merge_to()\npipeline.to("cuda")'
        )
    frames = int(options.get("validation_num_video_frames") or 121)
    code = f"""import torch
from diffusers import LTXPipeline
from diffusers.utils import export_to_video
{imports}
pipeline = LTXPipeline.from_pretrained("{facts.base_model}", torch_dtype=torch.bfloat16)
{load}

frames = pipeline(
    prompt={_quoted(prompt)},
    negative_prompt={_quoted(str(options.get("validation_negative_prompt") or ""))},
    width={width},
    height={height},
    num_frames={(frames - 1) // 8 * 8 + 1},
    num_inference_steps={options.get("validation_num_inference_steps") or 40},
    guidance_scale={options.get("validation_guidance") or 3.0},
    decode_timestep=0.05,
    decode_noise_scale=0.025,
    generator=torch.Generator("cuda").manual_seed({options.get("validation_seed") or 42}),
).frames[0]
export_to_video(frames, "output.mp4", fps={round(float(options.get("framerate") or 25))})"""
    needs = "pip install diffusers transformers sentencepiece imageio imageio-ffmpeg"
    needs += " lycoris-lora" if facts.is_lycoris else " peft"
    parts = ["## Use", _fenced(needs, "bash"), _fenced(code, "python")]
    if facts.has_average:
        parts.append(
            f"`ema/{WEIGHTS_NAME}` holds the running average of the same adapter; it often gives steadier videos."
        )
    return "\n\n".join(parts)


def _training(facts: CardFacts) -> str:
    rows = [f"| `{name}` | {_cell(facts.options[name])} |" for name in _SETTINGS if _is_said(facts.options.get(name))]
    parts = ["## Training", "| setting | value |\n|---|---|\n" + "\n".join([f"| steps | {facts.step} |", *rows])]
    if facts.datasets:
        keys = ("id", "dataset_type", "resolution", "repeats")
        lines = "\n".join(f"| {' | '.join(_cell(entry.get(key, '')) for key in keys)} |" for entry in facts.datasets)
        parts.append("| data set | kind | resolution | repeats |\n|---|---|---|---|\n" + lines)
    parts.append("The text encoder was not trained. All settings: `simpletuner_config.json`.")
    return "\n\n".join(parts)


def _licence(facts: CardFacts) -> str:
    return (
        "## Licence\n\nThis adapter works on LTX-Video and was derived from it: the licence of the base model's "
        f"weights ([Lightricks/LTX-Video]({LICENSE_LINK})) applies to its use, with its limits on what may be "
        "made with it. Rights in the training clips stay with their owners."
    )


def _is_said(value: Any) -> bool:
    return value is not None and value != ""


def _first_size(text: str) -> tuple[int, int]:
    match = re.match(r"\s*(\d+)\s*[xX*]\s*(\d+)", text)
    width, height = (int(match[1]), int(match[2])) if match else (768, 512)
    return width // 32 * 32, height // 32 * 32


def _quoted(text: str) -> str:
    # A JSON text is one of YAML and of Python too, once it holds printable characters only.
    return json.dumps("".join(c if c.isprintable() or c in "\n\t" else " " for c in text), ensure_ascii=False)


def _cell(value: Any) -> str:
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _fenced(text: str, language: str = "") -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
