"""From the wizard's answers to the content of the files: options, data sets, prompts, LyCORIS, webhook.

Pure. Writes down only what differs from the defaults, and what the guide expects to stand there; what a person
wrote by hand into an existing file is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from simpletuner.config.catalogs.families import FAMILIES, family_defaults
from simpletuner.config.documents import is_comment
from simpletuner.config.surfaces import prompt_templates, proposals
from simpletuner.config.surfaces.cli import canonical_name
from simpletuner.config.surfaces.wizard import Known
from simpletuner.config.surfaces.wizard_estimates import (
    EIGHT_BITS,
    FAMILY,
    RELEASES,
    looking_interval,
    safe_name,
    steps,
)
from simpletuner.config.table import option_table
from simpletuner.config.values import TRUE
from simpletuner.config.webhook_file import URL_KEYS

DATASETS, PROMPTS, LYCORIS, WEBHOOK = (
    "multidatabackend.json", "user_prompt_library.json", "lycoris_config.json", "webhook.json",
)  # fmt: skip
TEXT_STORE = "text-embeds"

# What a reader of the guide looks for in the file, default or not.
EXPLICIT = (
    "model_type", "model_family", "lora_type", "lora_rank", "pretrained_model_name_or_path", "output_dir",
    "data_backend_config", "resume_from_checkpoint", "seed", "max_train_steps", "num_train_epochs", "train_batch_size",
    "gradient_checkpointing", "mixed_precision", "optimizer", "learning_rate", "lr_scheduler", "lr_warmup_steps",
    "checkpoint_step_interval", "checkpoints_total_limit", "validation_prompt", "validation_step_interval",
    "validation_resolution", "validation_num_video_frames", "validation_guidance", "validation_num_inference_steps",
    "validation_seed", "tracker_run_name",
)  # fmt: skip
FROM_PICTURES = 0.3  # share of the samples that learn to go on from a given first frame; the rest keep text-to-video
# Put in without a question; a value that somebody wrote into an older file wins.
UNASKED: Mapping[str, Any] = {
    "resume_from_checkpoint": "latest", "seed": 42, "gradient_checkpointing": True, "mixed_precision": "bf16",
    "lr_scheduler": "constant_with_warmup", "checkpoints_total_limit": 5,
}  # fmt: skip
UNASKED_PREVIEWS = ("validation_guidance", "validation_num_inference_steps", "validation_seed")
# Options the wizard decides; one that an older file holds and that no longer follows from the answers is taken out.
MANAGED = (
    *EXPLICIT, "lycoris_config", "webhook_config", "user_prompt_library", "validation_disable", "use_ema",
    "ltx_train_mode", "ltx_protect_first_frame", "ltx_i2v_prob", "base_model_precision", "text_encoder_1_precision",
    "report_to", "push_to_hub", "hub_model_id", "eval_steps_interval",
)  # fmt: skip


@dataclass(frozen=True)
class Existing:
    """Files that are there already: name -> content; names are those of this module, "config.json" the first."""

    config: Mapping[str, Any] = field(default_factory=dict)
    datasets: tuple[Mapping[str, Any], ...] = ()
    prompts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the configuration under their own names, as written."""
        return {canonical_name(key): value for key, value in self.config.items() if not is_comment(key)}

    @property
    def clips_entry(self) -> Mapping[str, Any] | None:
        """The entry the wizard manages: the first enabled one with a folder of clips or pictures."""
        return next((entry for entry in self.datasets if _is_ours(entry, "video", "image")), None)

    @property
    def held_out_entry(self) -> Mapping[str, Any] | None:
        """The entry of clips set apart that the wizard manages."""
        return next((entry for entry in self.datasets if _is_ours(entry, "eval")), None)


def _is_ours(entry: Mapping[str, Any], *kinds: str) -> bool:
    disabled = str(entry.get("disabled", entry.get("disable", False))).lower() in TRUE
    local = entry.get("type", "local") == "local" and entry.get("dataset_type", "video") in kinds
    return local and not disabled and bool(entry.get("instance_data_dir"))


# Options -----------------------------------------------------------------------------------------


def draft_config(known: Known, existing: Existing) -> dict[str, Any]:
    """Content of config.json: wizard's options first, in the guide's order, then what was there by hand."""
    values = _options(known, existing)
    defaults = family_defaults(FAMILY)
    table = option_table()
    written = {
        name: values[name]
        for name in (*EXPLICIT, *(name for name in values if name not in EXPLICIT))
        if name in values
        and (
            name in EXPLICIT
            or name in known.answers["options"]
            or values[name] != defaults.get(name, table[name].default)
        )
    }
    kept = {key: value for key, value in existing.config.items() if is_comment(key) or not _decided(key, written)}
    return {**written, **kept}


def _decided(key: str, written: Mapping[str, Any]) -> bool:
    """Whether the wizard decides about a key of the older file, under whichever of its names it stands there."""
    name = canonical_name(key)
    return name in written or name in MANAGED


def _options(known: Known, existing: Existing) -> dict[str, Any]:
    answers, older = known.answers, existing.options
    by_epochs = answers["length"] == "epochs"
    values: dict[str, Any] = {
        "model_family": FAMILY,
        "model_type": "full" if answers["training"] == "full" else "lora",
        "pretrained_model_name_or_path": model_source(known),
        "output_dir": answers["output"],
        "data_backend_config": beside(known, DATASETS),
        "max_train_steps": 0 if by_epochs else answers["steps"],
        "num_train_epochs": answers["epochs"] if by_epochs else 0,
        "train_batch_size": answers["batch_size"],
        "optimizer": answers["optimizer"],
        "learning_rate": answers["learning_rate"],
        "lr_warmup_steps": _warm_up(known, older),
        "checkpoint_step_interval": answers["checkpoint_interval"],
        "tracker_run_name": answers["name"],
        **_adapter(known),
        **_previews(known, older),
        **_others(known, older),
        **{name: older.get(name, value) for name, value in UNASKED.items()},
    }
    return {name: _plain(value) for name, value in {**values, **answers["options"]}.items()}


def _plain(value: Any) -> Any:
    """The number as a person writes it: 480, not 480.0."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) >= 1 else value


def _adapter(known: Known) -> dict[str, Any]:
    if known.answers["training"] == "lora":
        return {"lora_type": "standard", "lora_rank": known.answers["rank"]}
    if known.answers["training"] == "lycoris":
        return {"lora_type": "lycoris", "lycoris_config": beside(known, LYCORIS)}
    return {}


def _warm_up(known: Known, older: Mapping[str, Any]) -> Any:
    """A tenth of the run, at most a hundred steps; what somebody chose instead is kept."""
    earlier = older.get("lr_warmup_steps")
    by_rule = (
        proposals.warm_up(int(older["max_train_steps"])) if str(older.get("max_train_steps", "")).isdecimal() else None
    )
    return proposals.warm_up(steps(known)) if earlier in (None, by_rule) else earlier


def _previews(known: Known, older: Mapping[str, Any]) -> dict[str, Any]:
    if not known.answers["previews"]:
        return {"validation_disable": True}
    defaults = {**{name: spec.default for name, spec in option_table().items()}, **family_defaults(FAMILY)}
    library = {"user_prompt_library": beside(known, PROMPTS)} if known.answers["prompt_library"] else {}
    return {
        **library,
        "validation_prompt": known.answers["prompt"],
        "validation_step_interval": known.answers["preview_interval"],
        "validation_resolution": known.answers["preview_size"],
        "validation_num_video_frames": known.answers["preview_frames"],
        **{name: older.get(name, defaults[name]) for name in UNASKED_PREVIEWS},
    }


def _others(known: Known, older: Mapping[str, Any]) -> dict[str, Any]:
    """Options of features that not every version of this program has."""
    answers = known.answers
    values: dict[str, Any] = {}
    if answers.get("average"):
        values["use_ema"] = True
    if answers.get("quantize", "no_change") != "no_change":
        values["base_model_precision"] = answers["quantize"]
    if answers.get("mode", "t2v") != "t2v":
        values |= {"ltx_train_mode": answers["mode"], "ltx_protect_first_frame": True, "ltx_i2v_prob": FROM_PICTURES}
    if answers.get("quantize_text"):
        values["text_encoder_1_precision"] = EIGHT_BITS
    if answers.get("tracker", "none") != "none":
        values["report_to"] = answers["tracker"]
    if answers.get("webhook"):
        values["webhook_config"] = beside(known, WEBHOOK)
    if answers.get("held_out"):
        values["eval_steps_interval"] = older.get("eval_steps_interval", looking_interval(known))
    if answers.get("upload"):
        values |= {"push_to_hub": True, "hub_model_id": safe_name(answers["name"])}
    return values


def model_source(known: Known) -> str:
    """Hub repository or folder of the chosen model."""
    choice = known.answers["model"]
    return str(known.answers["model_path"]) if choice == "path" else FAMILIES[FAMILY].checkpoint(RELEASES[choice])


def beside(known: Known, name: str) -> str:
    """A file beside the configuration, as the configuration names it."""
    return PurePosixPath(known.folder, name).as_posix()


# Data sets ---------------------------------------------------------------------------------------


def draft_datasets(known: Known, repeats: int, existing: Existing) -> list[dict[str, Any]]:
    """Content of multidatabackend.json: our entries with hand-written keys kept, then the other entries."""
    assert known.material is not None
    drafted = [_entry(known, known.material.folder, kind, repeats) for kind in _kinds(known)]
    if known.answers.get("held_out"):
        drafted.append(_entry(known, str(known.answers["held_out"]), "eval", 0))
    drafted.append({"id": TEXT_STORE, "type": "local", "dataset_type": "text_embeds", "default": True,
                    "cache_dir": "cache/text/{model_family}"})  # fmt: skip
    older = {_identity(entry): entry for entry in existing.datasets}
    first = existing.clips_entry
    replaced = {_identity(entry) for entry in (first, existing.held_out_entry) if entry is not None}
    if any(entry.get("dataset_type") == "text_embeds" for entry in existing.datasets):
        drafted.pop()
    merged = []
    for entry in drafted:
        previous = older.get(_identity(entry), first if entry is drafted[0] else None)
        merged.append(_merged(entry, previous, asked_parts="long_clips" in known.answers))
        replaced.add(_identity(entry))
    rest = [dict(entry) for entry in existing.datasets if _identity(entry) not in replaced]
    return [*merged, *rest]


def entry_id(folder: str, kind: str) -> str:
    """Id of the entry for the clips or the pictures of a folder, or for clips set apart."""
    return safe_name(folder) + {"image": "-pictures", "eval": "-held-out"}.get(kind, "")


def cache_folder(ident: str) -> str:
    """Where the encoded clips of an entry go, and what is remembered of their headers."""
    return "cache/vae/{model_family}/" + ident


def _kinds(known: Known) -> list[str]:
    assert known.material is not None
    kinds = ["video"] if known.material.clips else []
    if known.material.pictures and (known.answers.get("pictures", True) or not kinds):
        kinds.append("image")
    return kinds


def _identity(entry: Mapping[str, Any]) -> tuple[str, str]:
    return str(entry.get("instance_data_dir", "")).rstrip("/"), str(entry.get("dataset_type", "video"))


def _merged(entry: dict[str, Any], previous: Mapping[str, Any] | None, *, asked_parts: bool) -> dict[str, Any]:
    """The entry with what only the older one has; what the wizard decides is its own.

    Args:
        entry: As drafted.
        previous: As it stood.
        asked_parts: Whether it was asked which part of long clips is trained.
    """
    if previous is None:
        return entry
    same_folder = _identity(previous) == _identity(entry)
    taken_out = {"instance_prompt", "disabled", "disable"} | (set() if same_folder else {"id", "cache_dir_vae"})
    kept = {key: value for key, value in previous.items() if key not in taken_out}
    video = {**previous.get("video", {}), **entry.get("video", {})}
    if asked_parts and "frame_sampling" not in entry.get("video", {}):
        video.pop("frame_sampling", None)
    if previous.get("resolution_type") == "pixel":
        entry = {**entry, "resolution_type": "pixel"}
    if same_folder:
        entry = {**entry, **{key: previous[key] for key in ("id", "cache_dir_vae") if key in previous}}
    return {**kept, **entry, **({"video": video} if "video" in entry else {})}


def _entry(known: Known, folder: str, kind: str, repeats: int) -> dict[str, Any]:
    answers = known.answers
    ident = entry_id(folder, kind)
    entry: dict[str, Any] = {
        "id": ident,
        "type": "local",
        "dataset_type": kind,
        "instance_data_dir": folder,
        "cache_dir_vae": cache_folder(ident),
        "caption_strategy": answers.get("captions", "textfile"),
        "resolution": _plain(answers["resolution"]),
        "resolution_type": "pixel_area",
        "crop": False,
        "repeats": repeats,
    }
    if entry["caption_strategy"] == "instanceprompt":
        entry["instance_prompt"] = answers["instance_prompt"]
    if kind == "video" or (kind == "eval" and "num_frames" in answers):
        entry["video"] = {
            "num_frames": answers["num_frames"],
            "min_frames": answers["num_frames"],
            "bucket_strategy": "aspect_ratio",
            **({"frame_sampling": answers["long_clips"]} if answers.get("long_clips", "first") != "first" else {}),
        }
    return entry


# Prompts, LyCORIS, webhook ----------------------------------------------------------------------


def draft_prompts(known: Known, existing: Existing) -> dict[str, Any] | None:
    """Content of the prompt library, None when none is wanted; prompts that are there already stay as they are."""
    if not known.answers.get("previews") or not known.answers.get("prompt_library"):
        return None
    return {**prompt_templates.library(known), **existing.prompts}


def draft_lycoris(known: Known) -> dict[str, Any] | None:
    """Content of lycoris_config.json, None when another kind of training was chosen."""
    if known.answers["training"] != "lycoris":
        return None
    algorithm = known.answers.get("lycoris_algorithm", "lokr")
    size: dict[str, Any] = (
        {"linear_dim": 10000, "linear_alpha": 1, "full_matrix": True, "factor": 16}
        if algorithm == "lokr"
        else {"linear_dim": 16, "linear_alpha": 16}
    )
    targets: dict[str, Any] = {"target_module": ["Attention", "FeedForward"]}
    if algorithm == "lokr":
        targets["module_algo_map"] = {"Attention": {"factor": 16}, "FeedForward": {"factor": 8}}
    return {"algo": algorithm, "multiplier": 1.0, **size, "apply_preset": targets}


def draft_webhook(known: Known) -> dict[str, Any] | None:
    """Content of webhook.json, None when no address was given."""
    address = known.answers.get("webhook")
    if not address:
        return None
    host = urlsplit(str(address)).hostname or ""
    kind = "discord" if host.endswith(("discord.com", "discordapp.com")) else "raw"
    return {"webhook_type": kind, URL_KEYS[kind]: address, "message_prefix": known.answers["name"], "log_level": "info"}


# Back from the files -----------------------------------------------------------------------------


def answers_from(existing: Existing, options: Mapping[str, str]) -> dict[str, Any]:
    """Answers which existing files give, to be offered.

    Args:
        existing: The files.
        options: Key of a question -> option that answers it.
    """
    config = existing.options
    answers = {key: config[option] for key, option in options.items() if option in config}
    answers |= _model_answers(config)
    if config:
        answers["length"] = (
            "epochs" if config.get("num_train_epochs") and not config.get("max_train_steps") else "steps"
        )
        answers["training"] = "full" if config.get("model_type") == "full" else (
            "lycoris" if config.get("lora_type") == "lycoris" else "lora"
        )  # fmt: skip
        answers["previews"] = not config.get("validation_disable", False)
        answers["prompt_library"] = bool(config.get("user_prompt_library"))
    for key in ("steps", "epochs"):
        if answers.get(key) in (0, "0"):
            del answers[key]
    return answers | _dataset_answers(existing)


def _model_answers(config: Mapping[str, Any]) -> dict[str, Any]:
    source = config.get("pretrained_model_name_or_path")
    if not source:
        return {}
    for choice, release in RELEASES.items():
        if FAMILIES[FAMILY].checkpoint(release) == source:
            return {"model": choice}
    return {"model": "path", "model_path": source}


def _dataset_answers(existing: Existing) -> dict[str, Any]:
    apart = existing.held_out_entry
    held_out = {"held_out": apart["instance_data_dir"]} if apart is not None else {}
    entry = existing.clips_entry
    if entry is None:
        return held_out
    video = entry.get("video", {})
    size = entry.get("resolution")
    if entry.get("resolution_type") == "area" and isinstance(size, (int, float)):
        size = round((size * 1e6) ** 0.5)  # megapixels as the edge of a square
    found = {
        "clips": entry.get("instance_data_dir"),
        "captions": entry.get("caption_strategy"),
        "instance_prompt": entry.get("instance_prompt"),
        "resolution": size,
        "num_frames": video.get("num_frames"),
        "long_clips": video.get("frame_sampling"),
    }
    return held_out | {key: value for key, value in found.items() if value is not None}
