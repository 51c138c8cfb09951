"""Rules about the videos of a run: sizes, prompts, previews, and options that would have no effect.

It must not know files, the machine or the environment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from simpletuner.config.catalogs.previews import AUTO, FILE, PREVIEWS
from simpletuner.config.draft import Draft, Rule, note, warning
from simpletuner.config.sections.validation import ValidationSection, parse_sizes
from simpletuner.config.values import show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem

SHORT_PROMPT_WORDS = 12
OUTSIDE = "external-script"
NAMED_PREVIEWS = (AUTO, *(name for name in PREVIEWS if name != FILE))


def _sizes_of_videos(draft: Draft) -> Iterator[Problem]:
    written, where = draft.values["validation_resolution"], draft.place("validation_resolution")
    try:
        sizes = parse_sizes(written)
    except ValueError:
        yield Problem(
            f"validation_resolution = {show(written)}",
            "It lists sizes from 32 to 16384 pixels: WxH, comma-separated",
            "Write for example 768x512, or 1280x768,768x512, or 0.5 for half a megapixel",
            where,
        )
        return
    settings = ValidationSection(validation_resolution=written)
    for (width, height), (used_width, used_height) in zip(sizes, settings.resolutions, strict=True):
        if (width, height) != (used_width, used_height):
            yield note(
                f"validation size {width}x{height} is rounded down to {used_width}x{used_height}",
                "LTX-Video wants multiples of 32",
                where=where,
            )


def _frames_of_videos(draft: Draft) -> Iterator[Problem]:
    wanted = draft.values["validation_num_video_frames"]
    used = ValidationSection(validation_num_video_frames=wanted).num_frames
    if used != wanted:
        yield note(
            f"validation_num_video_frames = {wanted} is rounded down to {used}",
            "LTX-Video wants 8k+1 frames",
            where=draft.place("validation_num_video_frames"),
        )


def _prompts(draft: Draft) -> Iterator[Problem]:
    if draft.values["validation_disable"] or draft.values["validation_method"] == OUTSIDE:
        return
    if not draft.prompts and not draft.values["validation_using_datasets"]:
        yield warning(
            "there is no validation prompt, so no videos will be generated",
            "The videos show whether the training goes well",
            "Set validation_prompt, user_prompt_library or validation_prompt_library; or validation_disable to true",
            "validation_prompt",
        )
    short = [prompt.nickname for prompt in draft.prompts if len(prompt.prompt.split()) < SHORT_PROMPT_WORDS]
    if short:
        yield note(
            f"short prompts: {', '.join(short[:5])}{' …' if len(short) > 5 else ''}",
            "LTX-Video was trained on long, detailed descriptions",
            "Describe subject, motion, camera and light",
        )


def _previews(draft: Draft) -> Iterator[Problem]:
    decoder, where = str(draft.values["validation_preview_decoder"]), draft.place("validation_preview_decoder")
    if decoder not in NAMED_PREVIEWS and Path(decoder).suffix.lower() != ".safetensors":
        yield Problem(
            f"validation_preview_decoder = {show(decoder)}",
            f"It is {', '.join(NAMED_PREVIEWS)}, or the path of a .safetensors file; other kinds of files can run code "
            "and are not opened",
            did_you_mean(decoder, list(NAMED_PREVIEWS)) or "Correct it, or remove it",
            where,
        )
    if not draft.values["validation_preview"]:
        return
    every, steps = draft.values["validation_preview_steps"], draft.values["validation_num_inference_steps"]
    if draft.values["validation_disable"]:
        yield note("validation_preview has no effect with validation_disable", where=draft.place("validation_preview"))
    elif every > steps:
        yield warning(
            f"validation_preview_steps = {every} is above the {steps} denoising steps of a video: there is no preview",
            "A preview comes after every so many steps",
            f"Lower validation_preview_steps, for example to {max(1, steps // 4)}",
            draft.place("validation_preview_steps", "validation_num_inference_steps"),
        )


def _noise(draft: Draft) -> Iterator[Problem]:
    values = draft.values
    if values["validation_randomize"] and not (values["disable_benchmark"] or values["validation_disable"]):
        yield note(
            "validation_randomize = true: the base model's videos start from validation_seed, later ones from others",
            "Before and after then differ by their noise too",
            "Leave validation_randomize off to compare them",
            draft.place("validation_randomize"),
        )


def _pictures(draft: Draft) -> Iterator[Problem]:
    values = draft.values
    given = values["validation_using_datasets"] or any(prompt.image for prompt in draft.prompts)
    if values["validation_stitch_input_location"] != "none" and not given:
        yield note(
            f"{draft.told('validation_stitch_input_location')} has no effect",
            "No video begins with a picture",
            "Set validation_input or validation_using_datasets",
            draft.place("validation_stitch_input_location"),
        )


def _outside(draft: Draft) -> Iterator[Problem]:
    """A command in place of the program's own videos."""
    values, is_chosen = draft.values, draft.values["validation_method"] == OUTSIDE
    if is_chosen and not values["validation_external_script"]:
        yield Problem(
            f"validation_method = {show(OUTSIDE)} without validation_external_script",
            "It says what runs in place of the program's own videos",
            "Set validation_external_script to a command, for example a script file and {local_checkpoint_path}",
            draft.place("validation_method"),
        )
    for name in ("validation_external_script", "validation_external_background"):
        if values[name] and not is_chosen:
            yield note(
                f"{name} has no effect with {draft.told('validation_method')}",
                fix=f"Set validation_method to {OUTSIDE}, or remove it",
                where=draft.place(name),
            )
    if is_chosen and values["validation_on_startup"]:
        yield note(
            "validation_on_startup has no effect: a command is given checkpoints, and before the first step there is "
            "none",
            where=draft.place("validation_on_startup"),
        )


def _further_adapters(draft: Draft) -> Iterator[Problem]:
    """Adapters that are put on for validation only."""
    values = draft.values
    one, several = values["validation_adapter_path"], values["validation_adapter_config"]
    if one and several:
        yield Problem(
            "validation_adapter_path and validation_adapter_config are both set",
            "The second lists several adapters, the first is for one",
            "Move the path into the list, or remove one of them",
            draft.place("validation_adapter_path"),
        )
    if not values["validation_adapter_strength"]:
        yield Problem(
            f"validation_adapter_strength = {show(values['validation_adapter_strength'])}",
            "At strength 0 the adapter would do nothing",
            "Choose another, 1 is the strength it was trained at",
            draft.place("validation_adapter_strength"),
        )
    idle = [
        name
        for name in ("validation_adapter_name", "validation_adapter_strength", "validation_adapter_mode")
        if name in draft.given and not (one or (several and name == "validation_adapter_mode"))
    ]
    if idle:
        verb = "has" if len(idle) == 1 else "have"
        yield note(
            f"{', '.join(idle)} {verb} no effect: no adapter is named for validation",
            fix="Set validation_adapter_path, or remove it",
            where=draft.place(idle[0]),
        )


def _late_start(draft: Draft) -> Iterator[Problem]:
    after, steps = draft.values["validate_after_step"], draft.values["max_train_steps"]
    if after and steps and after > steps:
        yield note(
            f"validate_after_step = {after} is above the {steps} steps of the run: only the end is validated",
            where=draft.place("validate_after_step"),
        )


VALIDATION_RULES: tuple[Rule, ...] = (
    Rule(("validation_resolution",), _sizes_of_videos, "sizes are rounded down to multiples of 32"),
    Rule(("validation_num_video_frames",), _frames_of_videos, "the number is rounded down to 8k+1"),
    Rule(("validation_disable", "validation_prompt", "user_prompt_library", "validation_prompt_library"), _prompts,
         "validation needs a prompt, and a long one"),
    Rule(("validation_preview", "validation_preview_steps", "validation_preview_decoder", "validation_disable",
          "validation_num_inference_steps"), _previews, "previews need a decoder and an interval that is reached"),
    Rule(("validation_randomize", "disable_benchmark", "validation_disable"), _noise,
         "only equal noise can be compared"),
    Rule(("validation_method", "validation_external_script", "validation_external_background",
          "validation_on_startup"), _outside, "a command of one's own makes the videos"),
    Rule(("validation_adapter_path", "validation_adapter_config", "validation_adapter_strength",
          "validation_adapter_name", "validation_adapter_mode"), _further_adapters,
         "adapters beside the trained weights, for validation only"),
    Rule(("validation_stitch_input_location", "validation_using_datasets"), _pictures,
         "a picture is shown beside videos that begin with one"),
    Rule(("validate_after_step", "max_train_steps"), _late_start, "a start beyond the end leaves the last validation"),
)  # fmt: skip
