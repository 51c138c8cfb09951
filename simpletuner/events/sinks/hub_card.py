"""The model card of an adapter: README.md for the Hub, made of what the run folder knows.

Pure text from facts; the only look at the disk is which sample videos there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.hub_name import public_name
from simpletuner.events.sinks.hub_snippet import Kind, Snippet, fenced, first_size, quoted, tell_usage

VIDEO_FOLDER = "validation_videos"
WEIGHTS_NAME = "pytorch_lora_weights.safetensors"

_HOME = "https://huggingface.co/Lightricks/LTX-Video"
# Release -> (name, address) of the licence its weights came with, as their makers published it: 0.9.5 of March 2025 an
# Open RAIL-M licence, from 0.9.6 (April 2025) on the LTXV Open Weights License. Of 0.9.0 and 0.9.1 only that they have
# one of their own is known, so that readers are sent to the model's page.
_LICENCES = {
    "0.9.5": ("ltx-video-open-rail-m", f"{_HOME}/blob/main/ltx-video-2b-v0.9.5.license.txt"),
    **dict.fromkeys(("0.9.6", "0.9.7", "0.9.8"), ("ltxv-open-weights-license", _HOME)),
}
_VIDEO = re.compile(r"(?:base|step_(?P<step>\d+)(?P<ema>_ema)?)_(?P<rest>.+)_(?P<size>\d+x\d+)\.(?:mp4|png)")
_WEIGHTS = {"base": "base model", "adapter": "with this adapter", "ema": "with the averaged weights"}
# The settings a reader asks for first; the whole list goes along as a file.
_SETTINGS = (
    "model_type", "lora_type", "lora_rank", "lora_alpha", "optimizer", "learning_rate", "lr_scheduler",
    "lr_warmup_steps", "train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
    "mixed_precision", "base_model_precision", "max_grad_norm", "grad_clip_method", "flow_schedule_shift",
    "flow_schedule_auto_shift", "caption_dropout_probability", "use_ema", "ema_decay", "seed",
)  # fmt: skip

_SHOWING = (
    "validation_resolution", "validation_num_video_frames", "framerate", "validation_guidance",
    "validation_guidance_rescale", "validation_num_inference_steps", "validation_seed",
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
        return public_name(named)

    @property
    def licence(self) -> tuple[str, str]:
        """(name, address) of the licence of the base model's weights."""
        release = re.search(r"0\.9\.\d", f"{self.base_model} {self.options.get('model_flavour') or ''}")
        return _LICENCES.get(release[0] if release else "", ("ltx-video-model-license", _HOME))

    @property
    def is_full(self) -> bool:
        return self.options.get("model_type") == "full"

    @property
    def is_lycoris(self) -> bool:
        return not self.is_full and self.options.get("lora_type") == "lycoris"

    @property
    def how(self) -> Kind:
        """How the weights are loaded."""
        return "full" if self.is_full else "lycoris" if self.is_lycoris else "lora"

    @property
    def kind(self) -> str:
        """What was trained, in words."""
        if self.is_full:
            return "fine-tuned transformer"
        return "LyCORIS adapter" if self.is_lycoris else "LoRA"


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


def snippet_of(facts: CardFacts) -> Snippet:
    """What the code on the card is made of."""
    options = facts.options
    width, height = first_size(str(options.get("validation_resolution") or "768x512"))
    return Snippet(
        kind=facts.how,
        base_model=facts.base_model,
        repository=facts.repository,
        weights_name=WEIGHTS_NAME,
        prompt=facts.prompts[0]["prompt"] if facts.prompts else "A detailed description of the video.",
        negative_prompt=str(options.get("validation_negative_prompt") or ""),
        width=width,
        height=height,
        num_frames=(int(options.get("validation_num_video_frames") or 121) - 1) // 8 * 8 + 1,
        steps=int(options.get("validation_num_inference_steps") or 40),
        guidance=float(options.get("validation_guidance") or 3.0),
        seed=int(options.get("validation_seed") or 42),
        frame_rate=round(float(options.get("framerate") or 25)),
    )


def write_card(facts: CardFacts) -> str:
    """README.md: front matter, samples, how to use it, how it was trained, the licence."""
    sections = (
        _front_matter(facts),
        f"# {facts.run_name}",
        _opening(facts),
        str(facts.options.get("model_card_note") or ""),
        _samples(facts),
        tell_usage(snippet_of(facts), has_average=facts.has_average),
        _training(facts),
        _licence(facts),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(facts: CardFacts) -> str:
    is_safe = bool(facts.options.get("model_card_safe_for_work"))
    tags = ["ltx-video", "ltxvideo", "ltxvideo-diffusers", "text-to-video", "diffusers", "simpletuner"]
    tags += ["full"] if facts.is_full else ["lora", "template:sd-lora", "lycoris" if facts.is_lycoris else "standard"]
    tags += ["safe-for-work" if is_safe else "not-for-all-audiences"]
    name, link = facts.licence
    lines = ["---", "license: other", f"license_name: {name}", f"license_link: {link}"]
    if "/" in facts.base_model:
        relation = "finetune" if facts.is_full else "adapter"
        lines += [f"base_model: {quoted(facts.base_model)}", f"base_model_relation: {relation}"]
    lines += ["library_name: diffusers", "pipeline_tag: text-to-video", "inference: true", "tags:"]
    lines += [f"- {quoted(tag)}" for tag in tags]
    shown = [video for video in facts.videos if video.weights != "base"]
    if shown:
        negative = str(facts.options.get("validation_negative_prompt") or "")
        lines.append("widget:")
        for video in shown:
            lines += [f"- text: {quoted(video.prompt)}", "  parameters:", f"    negative_prompt: {quoted(negative)}",
                      "  output:", f"    url: {quoted(video.path)}"]  # fmt: skip
    return "\n".join([*lines, "---"])


def _opening(facts: CardFacts) -> str:
    text = f"A {facts.kind} for [{facts.base_model}](https://huggingface.co/{facts.base_model})"
    if "/" not in facts.base_model:
        text = f"A {facts.kind} for `{facts.base_model}`"
    text += f", trained for {facts.step} steps with SimpleTuner."
    if facts.prompts:
        text += f"\n\nThe main validation prompt was:\n\n{fenced(facts.prompts[0]['prompt'])}"
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


def _training(facts: CardFacts) -> str:
    rows = [f"| `{name}` | {_cell(facts.options[name])} |" for name in _SETTINGS if _is_said(facts.options.get(name))]
    parts = ["## Training", "| setting | value |\n|---|---|\n" + "\n".join([f"| steps | {facts.step} |", *rows])]
    if facts.datasets:
        keys = ("id", "dataset_type", "resolution", "repeats", "crop", "crop_aspect")
        lines = "\n".join(f"| {' | '.join(_cell(entry.get(key, '')) for key in keys)} |" for entry in facts.datasets)
        parts.append("| data set | kind | resolution | repeats | crop | shape |\n|---|---|---|---|---|---|\n" + lines)
    shown = [f"| `{name}` | {_cell(facts.options[name])} |" for name in _SHOWING if _is_said(facts.options.get(name))]
    if shown:
        parts.append("Validation videos were made with:\n\n| setting | value |\n|---|---|\n" + "\n".join(shown))
    parts.append("The text encoder was not trained. All settings: `simpletuner_config.json`.")
    return "\n\n".join(parts)


def _licence(facts: CardFacts) -> str:
    what = "These weights were" if facts.is_full else "This adapter was"
    return (
        f"## Licence\n\n{what} derived from {facts.base_model}: the licence of the base model's weights "
        f"([{facts.licence[0]}]({facts.licence[1]})) applies to their use, with its limits on what may be "
        "made with them. Rights in the training clips stay with their owners."
    )


def _is_said(value: Any) -> bool:
    return value is not None and value != ""


def _cell(value: Any) -> str:
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
