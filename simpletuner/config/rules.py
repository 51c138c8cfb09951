"""Rules across options: pure functions from what was given to findings, run before anything is loaded.

Each rule names the options it reads, so that it is skipped when one of them could not be read. It
must not know files, the machine or the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.sections.validation import ValidationSection, parse_sizes
from simpletuner.config.table import option_table
from simpletuner.config.values import show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity

SHORT_PROMPT_WORDS = 12


@dataclass(frozen=True)
class Draft:
    """The options of a run before they are a `RunConfig`.

    Attributes:
        values: Every option; also values that are refused as not built, so that rules can speak of them.
        given: Options somebody wrote.
        origins: Option -> where it stands.
        prompts: Validation prompts.
    """

    values: Mapping[str, Any]
    given: frozenset[str]
    origins: Mapping[str, str]
    prompts: tuple[ValidationPrompt, ...] = ()

    def place(self, *names: str) -> str:
        """Where the first of these options that somebody wrote stands, for the `where` of a problem."""
        return next((self.origins[name] for name in names if name in self.origins), names[0])

    def told(self, name: str, value: str = "") -> str:
        """ "name = value", and whether it is only the default."""
        shown = value or show(self.values[name])
        return f"{name} = {shown}" + ("" if name in self.given else " (default)")


Check = Callable[[Draft], Iterator[Problem]]


@dataclass(frozen=True)
class Rule:
    """One rule and the options it reads."""

    reads: tuple[str, ...]
    check: Check


def apply_rules(draft: Draft, unreadable: frozenset[str]) -> list[Problem]:
    """All findings of the rules whose options could be read."""
    return [problem for rule in RULES if not unreadable.intersection(rule.reads) for problem in rule.check(draft)]


def _note(what: str, rule: str = "", fix: str = "", where: str = "") -> Problem:
    return Problem(what, rule, fix, where, Severity.NOTE)


def _warning(what: str, rule: str, fix: str, where: str) -> Problem:
    return Problem(what, rule, fix, where, Severity.WARNING)


def _model_named(draft: Draft) -> Iterator[Problem]:
    if draft.values["model_family"] is None:
        yield Problem(
            "model_family is missing", "It says which architecture is trained", 'Write "model_family": "ltxvideo"'
        )
    if draft.values["model_type"] is None:
        yield Problem("model_type is missing", "It says what is trained", 'Write "model_type": "lora"')


def _flavour_known(draft: Draft) -> Iterator[Problem]:
    flavour, family = draft.values["model_flavour"], draft.values["model_family"]
    if flavour is None or family is None:
        return
    known = list(FAMILIES[family].checkpoints)
    if flavour not in known:
        yield Problem(
            f"model_flavour = {show(flavour)}",
            f"It must be one of: {', '.join(known)}",
            did_you_mean(flavour, known) or "Remove it, or name a checkpoint with pretrained_model_name_or_path",
            draft.place("model_flavour"),
        )
    elif draft.values["pretrained_model_name_or_path"]:
        yield _note(
            f"model_flavour = {show(flavour)} only matters without pretrained_model_name_or_path",
            where=draft.place("model_flavour"),
        )


def _length(draft: Draft) -> Iterator[Problem]:
    steps, epochs = draft.values["max_train_steps"], draft.values["num_train_epochs"]
    if not steps and not epochs:
        yield Problem(
            "max_train_steps and num_train_epochs are both 0",
            "One of them must say how long to train",
            "Set max_train_steps (for example 1000), or num_train_epochs",
            draft.place("max_train_steps", "num_train_epochs"),
        )
    elif steps and epochs and not draft.values["ignore_final_epochs"]:
        yield Problem(
            f"max_train_steps = {steps} and num_train_epochs = {epochs} are both set",
            "Only one of them can end the run",
            "Set one of them to 0, or ignore_final_epochs to true so that the steps decide",
            draft.place("num_train_epochs"),
        )
    elif steps and epochs:
        yield _note(
            f"max_train_steps = {steps} ends the run; num_train_epochs = {epochs} does not (ignore_final_epochs)",
            where=draft.place("num_train_epochs"),
        )


def _warm_up(draft: Draft) -> Iterator[Problem]:
    schedule, warm = draft.values["lr_scheduler"], draft.values["lr_warmup_steps"]
    steps = draft.values["max_train_steps"]
    where = draft.place("lr_warmup_steps")
    if not warm:
        return
    if schedule == "cosine" and steps and warm >= steps:
        rate, end = draft.values["learning_rate"], draft.values["lr_end"]
        more = "equal to" if warm == steps else "above"
        yield _note(
            f"lr_warmup_steps = {warm} is {more} max_train_steps: read as one cosine from {rate:g} to {end:g} "
            "without warm-up",
            f"The other reading, a warm-up over the whole run, would never reach {rate:g}",
            "For a warm-up followed by a cosine, set lr_warmup_steps below max_train_steps",
            where,
        )
    elif schedule == "cosine":
        yield _note(f"{warm} steps of warm-up, then the cosine", where=where)
    elif schedule == "constant":
        yield _note(
            f"{draft.told('lr_scheduler')} with a warm-up is read as 'constant_with_warmup'",
            where=draft.place("lr_scheduler", "lr_warmup_steps"),
        )
    elif steps and warm >= steps:
        yield _warning(
            f"lr_warmup_steps = {warm} is not below the {steps} steps of the run",
            f"The learning rate never reaches {draft.values['learning_rate']:g}",
            "Lower lr_warmup_steps, for example to a tenth of the run",
            where,
        )


def _end_rate(draft: Draft) -> Iterator[Problem]:
    rate, end = draft.values["learning_rate"], draft.values["lr_end"]
    if draft.values["lr_scheduler"] in ("polynomial", "cosine", "linear") and end >= rate:
        yield Problem(
            f"{draft.told('lr_end', f'{end:g}')} is not below {draft.told('learning_rate', f'{rate:g}')}",
            "A decaying schedule ends lower than it begins",
            "Lower lr_end (0 is allowed)",
            draft.place("lr_end", "learning_rate", "lr_scheduler"),
        )


def _clipping(draft: Draft) -> Iterator[Problem]:
    if draft.values["max_grad_norm"] == 0:
        yield _note("max_grad_norm = 0: gradients are not clipped", where=draft.place("max_grad_norm"))


def _lycoris_rank(draft: Draft) -> Iterator[Problem]:
    if draft.values["lora_type"] == "lycoris" and "lora_rank" in draft.given:
        yield _note(
            f"lora_rank = {draft.values['lora_rank']} has no effect with lora_type lycoris",
            "The LyCORIS file sets the size",
            where=draft.place("lora_rank"),
        )


def _exclusions(draft: Draft) -> Iterator[Problem]:
    for name in sorted(draft.given):
        spec = option_table()[name]
        if not spec.facts.excludes or not draft.values[name]:
            continue
        for other in spec.facts.excludes:
            value = draft.values[other]
            if other in draft.given and value and value != option_table()[other].default:
                yield Problem(
                    f"{name} = {show(draft.values[name])} and {other} = {show(value)} exclude each other",
                    "Only one of them can be used",
                    f"Remove one of them ({draft.place(other)})",
                    draft.place(name),
                )


def _precision(draft: Draft) -> Iterator[Problem]:
    optimizer = draft.values["optimizer"]
    if optimizer in OPTIMIZERS and OPTIMIZERS[optimizer].parameter_dtype == "bf16":
        if draft.values["mixed_precision"] != "no":
            return
        yield Problem(
            f"{draft.told('optimizer')} with {draft.told('mixed_precision')}",
            "This optimizer keeps its weights in bf16",
            'Set mixed_precision to "bf16", or optimizer to "torch-adamw"',
            draft.place("mixed_precision", "optimizer"),
        )


def _sizes_of_videos(draft: Draft) -> Iterator[Problem]:
    written, where = draft.values["validation_resolution"], draft.place("validation_resolution")
    try:
        sizes = parse_sizes(written)
    except ValueError:
        yield Problem(
            f"validation_resolution = {show(written)}",
            "It lists sizes from 32 to 16384 pixels: WxH, comma-separated",
            "Write for example 768x512, or 1280x768,768x512",
            where,
        )
        return
    settings = ValidationSection(validation_resolution=written)
    for (width, height), (used_width, used_height) in zip(sizes, settings.resolutions, strict=True):
        if (width, height) != (used_width, used_height):
            yield _note(
                f"validation size {width}x{height} is rounded down to {used_width}x{used_height}",
                "LTX-Video wants multiples of 32",
                where=where,
            )


def _frames_of_videos(draft: Draft) -> Iterator[Problem]:
    wanted = draft.values["validation_num_video_frames"]
    used = ValidationSection(validation_num_video_frames=wanted).num_frames
    if used != wanted:
        yield _note(
            f"validation_num_video_frames = {wanted} is rounded down to {used}",
            "LTX-Video wants 8k+1 frames",
            where=draft.place("validation_num_video_frames"),
        )


def _prompts(draft: Draft) -> Iterator[Problem]:
    if draft.values["validation_disable"]:
        return
    if not draft.prompts:
        yield _warning(
            "there is no validation prompt, so no videos will be generated",
            "The videos show whether the training goes well",
            "Set validation_prompt or user_prompt_library; or validation_disable to true",
            "validation_prompt",
        )
    short = [prompt.nickname for prompt in draft.prompts if len(prompt.prompt.split()) < SHORT_PROMPT_WORDS]
    if short:
        yield _note(
            f"short prompts: {', '.join(short[:5])}{' …' if len(short) > 5 else ''}",
            "LTX-Video was trained on long, detailed descriptions",
            "Describe subject, motion, camera and light",
        )


def _trackers(draft: Draft) -> Iterator[Problem]:
    spec = option_table()["report_to"]
    for word in str(draft.values["report_to"]).split(","):
        name = word.strip().lower()
        if name in ("", "none", "simpletuner"):
            continue
        missing = spec.facts.planned_values.get(name)
        yield Problem(
            f"report_to = {show(name)}",
            f"Not built yet: {missing}" if missing else "There is no such tracker",
            'Set report_to to "none": the run folder keeps metrics.jsonl and a report'
            if missing
            else 'Set it to "none"',
            draft.place("report_to"),
        )


def _aspect_grid(draft: Draft) -> Iterator[Problem]:
    alignment = draft.values["aspect_bucket_alignment"]
    if alignment % 32:
        yield Problem(
            f"aspect_bucket_alignment = {alignment}", "LTX-Video wants multiples of 32", "Set it to 32 or 64",
            draft.place("aspect_bucket_alignment"),
        )  # fmt: skip


RULES: tuple[Rule, ...] = (
    Rule(("model_family", "model_type"), _model_named),
    Rule(("model_flavour", "model_family", "pretrained_model_name_or_path"), _flavour_known),
    Rule(("max_train_steps", "num_train_epochs", "ignore_final_epochs"), _length),
    Rule(("lr_scheduler", "lr_warmup_steps", "max_train_steps", "learning_rate", "lr_end"), _warm_up),
    Rule(("lr_scheduler", "learning_rate", "lr_end"), _end_rate),
    Rule(("max_grad_norm",), _clipping),
    Rule(("lora_rank",), _lycoris_rank),
    Rule((), _exclusions),
    Rule(("optimizer", "mixed_precision"), _precision),
    Rule(("validation_resolution",), _sizes_of_videos),
    Rule(("validation_num_video_frames",), _frames_of_videos),
    Rule(("validation_disable", "validation_prompt", "user_prompt_library"), _prompts),
    Rule(("report_to",), _trackers),
    Rule(("aspect_bucket_alignment",), _aspect_grid),
)
