"""What `simpletuner generate` is told about the model and the videos, from a finished run and from the command line.

A run's own settings are the defaults, so that its videos are those of its validation; whatever else stands on the
command line wins. Nothing heavy is imported, and all that is wrong is told at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from simpletuner.config.catalogs.families import FAMILIES, family_defaults
from simpletuner.config.documents import read_json
from simpletuner.config.draft import Draft
from simpletuner.config.paths import check_sources
from simpletuner.config.prompts import name_prompts, read_library
from simpletuner.config.rules import apply_rules
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.validation import ValidationSection, parse_sizes
from simpletuner.config.surfaces.cli import Given, canonical_name
from simpletuner.config.table import option_table
from simpletuner.config.validation_inputs import read_inputs
from simpletuner.config.values import UnreadableError, is_absent, read_value, refusal, show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, UserError

FAMILY: Final = "ltxvideo"
# Flag of the command -> option it sets.
FLAGS: Mapping[str, str] = {
    "model": "pretrained_model_name_or_path",
    "flavour": "model_flavour",
    "negative": "validation_negative_prompt",
    "frames": "validation_num_video_frames",
    "fps": "framerate",
    "steps": "validation_num_inference_steps",
    "guidance": "validation_guidance",
    "seed": "validation_seed",
}
_SIZE = "validation_resolution"
_FURTHER: Final = ("validation_guidance_rescale", "validation_seed_source", "validation_stitch_input_location")
_STREAMING: Final = (
    "enable_group_offload", "group_offload_type", "group_offload_blocks_per_group", "group_offload_use_stream",
    "group_offload_to_disk_path", "group_offload_text_encoder", "musubi_blocks_to_swap",
)  # fmt: skip
_FRAMES_WITH_PICTURE = 9  # the picture is the first latent frame, and one must be left to make


def used_options() -> frozenset[str]:
    """Options that say anything about generating a video."""
    table = option_table()
    of_sections = {name for name, spec in table.items() if spec.section in ("model", "precision")}
    return frozenset(
        of_sections - {"model_type"} | {*FLAGS.values(), _SIZE, "vae_enable_tiling", *_STREAMING, *_FURTHER}
    )


@dataclass(frozen=True)
class GenerationSettings:
    """The model and the videos' form.

    Attributes:
        model, precision, memory, validation: The sections that the options were read into.
        frame_rate: Frames per second.
        tiling: Whether frames are decoded in tiles.
    """

    model: ModelSection
    precision: PrecisionSection
    memory: MemorySection
    validation: ValidationSection
    frame_rate: float
    tiling: bool


def read_settings(
    recorded: Mapping[str, Any], given: Sequence[Given], size: tuple[str | None, str | None], working_folder: Path
) -> tuple[GenerationSettings, list[Problem]]:
    """Settings from defaults, a run's record and what was given, and all findings; notes among them.

    Args:
        recorded: Option -> value as a run resolved it; may be empty.
        given: Options on the command line, under their own names.
        size: Width and height on the command line, each as written.
        working_folder: Relative paths start here.
    """
    used, table = used_options(), option_table()
    values = {name: spec.default for name, spec in table.items()} | dict(family_defaults(FAMILY))
    values |= {name: value for name, value in recorded.items() if name in used and value is not None}
    values["model_family"] = FAMILY
    problems: list[Problem] = []
    origins: dict[str, str] = {}
    unreadable: set[str] = set()
    for item in given:
        name = canonical_name(item.key)
        problem = _unusable(name, item) or _read(name, item, values)
        if problem is not None:
            problems.append(problem)
            unreadable.add(name)
        if name in used:
            origins[name] = item.origin
    problems += _read_size(size, values, unreadable)
    idle = frozenset(table.keys() - used) | unreadable
    draft = Draft(values, frozenset(origins), origins)
    problems += [*apply_rules(draft, idle), *check_sources(draft, idle, working_folder)]
    return _build(values), problems


def _unusable(name: str, given: Given) -> Problem | None:
    if name in used_options():
        return None
    if name in option_table():
        return Problem(
            f"{name} = {show(given.value)}", "It says nothing about generating a video", "Remove it", given.origin
        )
    fix = (
        did_you_mean(name, [*used_options(), *FLAGS]) or "Remove it; `simpletuner generate --help` lists what there is"
    )
    return Problem(f"unknown option '{given.key}'", "", fix, given.origin)


def _read(name: str, given: Given, values: dict[str, Any]) -> Problem | None:
    """Read one value into `values`; the problem if it cannot be."""
    spec = option_table()[name]
    written = f"{name} = {show(given.value)}"
    if is_absent(spec, given.value):
        return None
    try:
        value = read_value(spec, given.value)
    except UnreadableError as error:
        return Problem(written, error.rule, error.fix or "Correct the value", given.origin)
    refused = refusal(spec, value)
    if refused is not None:
        return Problem(written, *refused, given.origin)
    values[name] = value
    return None


def _read_size(size: tuple[str | None, str | None], values: dict[str, Any], unreadable: set[str]) -> list[Problem]:
    """Put width and height, where given, in the place of the settings' own."""
    if size == (None, None):
        return []
    sides = []
    problems = []
    try:
        before = parse_sizes(values[_SIZE])[0]
    except ValueError:
        before = (512, 512)
    for name, written, known in zip(("width", "height"), size, before, strict=True):
        if written is None or (written.isdecimal() and 32 <= int(written) <= 16384):
            sides.append(known if written is None else int(written))
        else:
            rule = "It must be a whole number of pixels from 32 to 16384"
            problems.append(Problem(f"--{name} {written}", rule, "Write for example 768", "command line"))
    if problems:
        unreadable.add(_SIZE)
    else:
        values[_SIZE] = f"{sides[0]}x{sides[1]}"
    return problems


def _build(values: Mapping[str, Any]) -> GenerationSettings:
    """Sections of the values; a size that could not be read is told elsewhere."""
    table = option_table()

    def section(kind: type[Any]) -> Any:
        used = used_options()
        return kind.model_validate(
            {
                name: values[name]
                for name in kind.model_fields
                if name in used and (table[name].default is ... or values[name] != table[name].default)
            }
        )

    return GenerationSettings(
        model=section(ModelSection),
        precision=section(PrecisionSection),
        memory=section(MemorySection),
        validation=section(ValidationSection),
        frame_rate=values["framerate"] or FAMILIES[FAMILY].frame_rate,
        tiling=bool(values["vae_enable_tiling"]),
    )


def read_prompts(
    texts: Sequence[str], library: str | None, image: str | None, working_folder: Path
) -> tuple[tuple[ValidationPrompt, ...], list[Problem]]:
    """The prompts of the command line and of a prompt file, each with a nickname of its own, and findings.

    Args:
        texts: Prompts as written.
        library: A JSON file: nickname -> prompt, or a list of pictures with prompts (see `validation_inputs.py`).
        image: Picture with which the videos of `texts` begin.
        working_folder: Relative paths start here.
    """
    problems: list[Problem] = []
    prompts: list[ValidationPrompt] = []
    picture = ""
    if image is not None:
        picture = str(working_folder / Path(image).expanduser())
        if not Path(picture).is_file():
            problems.append(Problem(f"--image {image}: there is no such file", "", "Correct the path", "command line"))
        if not texts:
            problems.append(
                Problem("--image without --prompt", "It is the first frame of that prompt's video",
                        "Add --prompt; a prompt file names pictures itself", "command line")
            )  # fmt: skip
    for text in texts:
        # What a file name shows of a prompt: its first words.
        prompts.append(ValidationPrompt(" ".join(text.split()[:5]) or "empty", text.strip(), picture))
    if library is not None:
        found, told = _read_prompt_file(working_folder / Path(library).expanduser(), library, working_folder)
        prompts += found
        problems += told
    return name_prompts(None, prompts), problems


def _read_prompt_file(path: Path, name: str, folder: Path) -> tuple[list[ValidationPrompt], list[Problem]]:
    try:
        is_list = isinstance(read_json(path, name).value, list)
    except UserError as error:
        return [], list(error.problems)
    return read_inputs(path, name, (folder, path.parent)) if is_list else read_library(path, name)


def check_frames(settings: GenerationSettings, prompts: Sequence[ValidationPrompt]) -> list[Problem]:
    """A finding where a video begins with a picture and has no frame left to make."""
    frames = settings.validation.num_frames
    if frames >= _FRAMES_WITH_PICTURE or not any(prompt.image for prompt in prompts):
        return []
    return [
        Problem(
            f"{frames} frames for a video that begins with a picture",
            f"The picture is its first frame; it needs {_FRAMES_WITH_PICTURE} frames or more",
            f"Set --frames to {_FRAMES_WITH_PICTURE} or more",
            "command line",
        )
    ]
