"""What videos are wanted, of which model, with which adapters: read, checked and told before anything is loaded.

All problems come at once and in a moment: this module imports no torch. `generate.py` fulfils the order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.generation import FAMILY, FLAGS, GenerationSettings, check_frames, read_prompts, read_settings
from simpletuner.config.resolve import examine
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.surfaces.cli import CommandLine, Given, canonical_name, parse_arguments
from simpletuner.core.errors import Problem, Severity, UserError
from simpletuner.core.files import ensure_writable
from simpletuner.events.run import CONFIG_FILE, VERSIONS_FILE
from simpletuner.models.adapters.weights_file import (
    BEST_FOLDER,
    TRANSFORMER_FOLDER,
    WeightsFile,
    check_together,
    read_weights_file,
    split_strength,
)
from simpletuner.validation.run_record import read_document

# Name of `--weights` -> folder inside the run folder.
RUN_WEIGHTS: Mapping[str, str] = {"trained": "", "ema": "ema", "best": BEST_FOLDER, "base": ""}
_WHY_ABSENT: Mapping[str, tuple[str, str]] = {  # rule and fix
    "ema": ("A run keeps an average of its weights with use_ema", "Leave --weights out, or train with use_ema"),
    "best": (
        "A run keeps the best weights where it measures the loss on clips set apart (a data set of dataset_type eval)",
        "Leave --weights out, or train with such a set",
    ),
}
_FOLDER: Final = "generated"
_TEXT_CACHE: Final = ".prompts"
_MOST_VIDEOS: Final = 100
_NAMING_MODEL: Final = ("pretrained_model_name_or_path", "model_flavour")
# Options that may name a place on this machine, relative to where the run was started.
_PLACES: Final = (
    "pretrained_model_name_or_path",
    "pretrained_transformer_model_name_or_path",
    "pretrained_vae_model_name_or_path",
    "pretrained_t5_model_name_or_path",
)
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Words:
    """What stands on the command line, as written; absent where it does not.

    Attributes:
        prompts, library, image: What is shown: texts, a prompt file, the first frame.
        run, weights: A finished run, and which of its weights.
        adapters: "FILE" or "FILE:STRENGTH".
        options: (option, value) of the flags in `config.generation.FLAGS`.
        width, height, count: Size in pixels and number of videos per prompt.
        out: Folder, or file of a single video.
        rest: Everything else: `key=value` and the selectors --config, --env, --example.
    """

    prompts: tuple[str, ...] = ()
    library: str | None = None
    image: str | None = None
    run: str | None = None
    weights: str | None = None
    adapters: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    width: str | None = None
    height: str | None = None
    count: str | None = None
    out: str | None = None
    rest: tuple[str, ...] = ()

    def given(self) -> list[Given]:
        """The options that flags of the command set."""
        flags = {option: f"--{flag}" for flag, option in FLAGS.items()}
        return [Given(name, value, flags[name]) for name, value in self.options]


@dataclass(frozen=True)
class Piece:
    """One video of the order."""

    prompt: ValidationPrompt
    width: int
    height: int
    seed: int
    path: Path


@dataclass(frozen=True)
class GenerationOrder:
    """Everything that is needed to make the videos.

    Attributes:
        settings: Model, precision and form of the videos.
        adapters: What is put on the base model.
        pieces: The videos.
        text_cache: Where features of the prompts are kept, so that the text encoder is loaded once for each.
        notices: Notes and warnings.
    """

    settings: GenerationSettings
    adapters: tuple[WeightsFile, ...]
    pieces: tuple[Piece, ...]
    text_cache: Path
    notices: tuple[Problem, ...] = ()


@dataclass
class _Run:
    """A finished run as its folder tells it; empty where there is none."""

    folder: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[ValidationPrompt, ...] = ()
    text_cache: Path | None = None


def read_order(words: Words, environment: Mapping[str, str], working_folder: Path) -> GenerationOrder:
    """Check everything that can be checked without loading.

    Args:
        words: The command line.
        environment: Environment variables, for the selectors of a configuration.
        working_folder: Relative paths start here.

    Raises:
        UserError: With every problem found.
    """
    problems: list[Problem] = []
    line = _parse_rest(words, problems)
    adapters = _read_adapters(words, working_folder, problems)
    run = _find_run(words, line, adapters, environment, working_folder, problems)
    adapters = [*adapters, *_weights_of_run(words, line, run, problems)]
    problems.extend(check_together(adapters))
    given = [*_model_given(words, line, run, adapters, problems), *words.given(), *line.overrides]
    settings, told = read_settings(run.options, given, (words.width, words.height), working_folder)
    problems += told
    prompts, told = read_prompts(words.prompts, words.library, words.image, working_folder)
    problems += told
    if not (words.prompts or words.library):
        prompts = run.prompts
    if not prompts and not problems:
        problems.append(
            Problem("there is no prompt", "It says what the video shows",
                    'Add --prompt "…", a prompt file (--prompts FILE), or --run FOLDER for those of a run')
        )  # fmt: skip
    problems += check_frames(settings, prompts)
    count = _read_count(words.count, problems)
    if any(problem.severity is Severity.ERROR for problem in problems):
        raise UserError.of(problems)
    pieces = _plan_pieces(words, run, settings, prompts, count, working_folder)
    ensure_writable(pieces[0].path.parent, "folder for the videos")
    cache = run.text_cache or pieces[0].path.parent / _TEXT_CACHE
    return GenerationOrder(settings, tuple(adapters), pieces, cache, tuple(problems))


def _parse_rest(words: Words, problems: list[Problem]) -> CommandLine:
    line = parse_arguments(words.rest)
    problems.extend(line.problems)
    selected = [name for name, value in (("--run", words.run), *((f"--{k}", v) for k, v in line.selection.items()))
                if value is not None]  # fmt: skip
    if len(selected) > 1:
        problems.append(Problem(f"{' and '.join(selected)} together", "Each names a run", "Name one of them"))
    return line


def _read_adapters(words: Words, working_folder: Path, problems: list[Problem]) -> list[WeightsFile]:
    found = []
    for text in words.adapters:

        def read(text: str = text) -> WeightsFile:
            path, strength = split_strength(text)
            return read_weights_file(working_folder / path, strength)

        file = _collect(problems, read)
        if file is not None:
            found.append(file)
    return found


def _find_run(
    words: Words,
    line: CommandLine,
    adapters: Sequence[WeightsFile],
    environment: Mapping[str, str],
    working_folder: Path,
    problems: list[Problem],
) -> _Run:
    """The run that is named, or the one in whose folder the first adapter lies when nobody names a model."""
    folder: Path | None = None
    if words.run is not None:
        folder = working_folder / Path(words.run).expanduser()
    elif line.selection:
        selectors = [f"{name}={value}" for name, value in line.selection.items()]
        examination = examine(selectors, environment, working_folder)
        if examination.trial is None:
            problems.extend(examination.problems)
            return _Run()
        folder = working_folder / examination.trial.checkpoint.output_dir
    elif adapters and not _names_model(words, line):
        # The adapter itself, those of its checkpoints, and averages in either.
        around = list(adapters[0].path.parents)[:3]
        folder = next((place for place in around if (place / CONFIG_FILE).is_file()), None)
    if folder is None:
        return _Run()
    place = folder
    return _collect(problems, lambda: _read_run(place)) or _Run()


def _names_model(words: Words, line: CommandLine) -> bool:
    named = {name for name, _ in words.options} | {canonical_name(item.key) for item in line.overrides}
    return not named.isdisjoint(_NAMING_MODEL)


def _read_run(folder: Path) -> _Run:
    """What the run in `folder` was told.

    Raises:
        UserError: If it is not the folder of a run.
    """
    try:
        document = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        options = {name: facts["value"] for section in document["options"].values() for name, facts in section.items()}
        prompts = tuple(ValidationPrompt(**entry) for entry in document["prompts"])
        text_cache = document["text_embeds"]["cache_dir"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{folder}' is not the folder of a run",
            f"A run folder holds a {CONFIG_FILE} that can be read",
            "Give the output_dir of a run that has been started, or name the model with --model",
        ) from error
    began_in = str(read_document(folder / VERSIONS_FILE).get("working_folder", ""))
    for name in _PLACES:
        if options.get(name):
            options[name] = _as_there(str(options[name]), began_in)
    cache = Path(_as_there(text_cache, began_in)) if text_cache else None
    return _Run(folder, options, prompts, cache if cache is not None and cache.is_dir() else None)


def _as_there(text: str, began_in: str) -> str:
    """A path that the run was given, whole if it leads somewhere only from where the run was started."""
    there = Path(began_in) / text
    return str(there) if began_in and not Path(text).expanduser().exists() and there.exists() else text


def _weights_of_run(words: Words, line: CommandLine, run: _Run, problems: list[Problem]) -> list[WeightsFile]:
    """The run's own weights, unless adapters are named or the base model is asked for."""
    names_run = words.run is not None or bool(line.selection)
    if words.weights is not None and (words.adapters or not names_run):
        problems.append(
            Problem(f"--weights {words.weights}", "It chooses among the weights of a run",
                    "Name the run with --run, and no --adapter")
        )  # fmt: skip
        return []
    chosen = words.weights or "trained"
    if chosen not in RUN_WEIGHTS:
        problems.append(Problem(f"--weights {chosen}", f"It must be one of: {', '.join(RUN_WEIGHTS)}", "Correct it"))
        return []
    if run.folder is None or words.adapters or chosen == "base":
        return []
    place = run.folder / RUN_WEIGHTS[chosen]
    if RUN_WEIGHTS[chosen] and not place.is_dir():
        problems.append(Problem(f"--weights {chosen}: '{place}' is not there", *_WHY_ABSENT[chosen]))
        return []
    file = _collect(problems, lambda: read_weights_file(place))
    return [] if file is None else [file]


def _model_given(
    words: Words, line: CommandLine, run: _Run, adapters: Sequence[WeightsFile], problems: list[Problem]
) -> list[Given]:
    """Where the model comes from when nobody says it: the base an adapter was trained on, or whole weights."""
    given: list[Given] = []
    base = next((file for file in adapters if file.metadata.get("base_model")), None)
    if base is not None and run.folder is None and not _names_model(words, line):
        name, flavours = base.metadata["base_model"], FAMILIES[FAMILY].checkpoints
        if name not in flavours and "/" not in name and not Path(name).exists():
            problems.append(
                Problem(
                    f"'{base.path.name}' was trained on a model in a folder called '{name}', which is not here",
                    "An adapter belongs to the model it was trained on",
                    "Name that model with --model",
                )
            )
            return given
        # A run whose model was named by its release alone knows no more of it.
        option = "model_flavour" if name in flavours else "pretrained_model_name_or_path"
        given.append(Given(option, name, f"metadata of '{base.path.name}'"))
    for file in adapters:
        if file.kind == "whole":
            inside = file.path.is_dir() and file.path.name == TRANSFORMER_FOLDER
            place, folder = (file.path.parent, TRANSFORMER_FOLDER) if inside else (file.path, "none")
            given.append(Given("pretrained_transformer_model_name_or_path", str(place), "the whole transformer"))
            given.append(Given("pretrained_transformer_subfolder", folder, "the whole transformer"))
    return given


def _read_count(written: str | None, problems: list[Problem]) -> int:
    if written is None:
        return 1
    if written.isdecimal() and 1 <= int(written) <= _MOST_VIDEOS:
        return int(written)
    problems.append(
        Problem(f"--count {written}", f"It must be a whole number from 1 to {_MOST_VIDEOS}", "Write for example 4")
    )
    return 1


def _plan_pieces(
    words: Words,
    run: _Run,
    settings: GenerationSettings,
    prompts: Sequence[ValidationPrompt],
    count: int,
    working_folder: Path,
) -> tuple[Piece, ...]:
    """Every video with its file; a file that is there is never written over.

    Raises:
        UserError: If --out names a file that is taken, or one file for several videos.
    """
    form = settings.validation
    suffix = ".png" if form.num_frames == 1 else ".mp4"
    wanted = [
        (prompt, width, height, form.validation_seed + number)
        for prompt in prompts
        for width, height in form.resolutions
        for number in range(count)
    ]
    out = Path(words.out).expanduser() if words.out is not None else (run.folder or Path()) / _FOLDER
    out = working_folder / out
    if out.suffix.lower() in (".mp4", ".png"):
        _check_single_file(out, suffix, len(wanted))
        return tuple(Piece(*video, out) for video in wanted)
    taken: set[Path] = set()
    pieces = []
    for prompt, width, height, seed in wanted:
        path = _free_path(out, f"{prompt.nickname}_{width}x{height}_seed{seed}", suffix, taken)
        taken.add(path)
        pieces.append(Piece(prompt, width, height, seed, path))
    return tuple(pieces)


def _check_single_file(out: Path, suffix: str, count: int) -> None:
    problems = []
    if count > 1:
        rule = "One file holds one video"
        problems.append(Problem(f"--out {out.name} for {count} videos", rule, "Name a folder instead"))
    if out.suffix.lower() != suffix:
        what = "one frame is a .png file" if suffix == ".png" else "a video is an .mp4 file"
        problems.append(Problem(f"--out {out.name}", what.capitalize(), f"Write {out.stem}{suffix}"))
    if out.exists():
        problems.append(
            Problem(f"'{out}' is already there", "Nothing of yours is overwritten", "Choose another --out, or a folder")
        )
    if problems:
        raise UserError.of(problems)


def _free_path(folder: Path, stem: str, suffix: str, taken: set[Path]) -> Path:
    path, number = folder / f"{stem}{suffix}", 1
    while path in taken or path.exists():
        number += 1
        path = folder / f"{stem}_{number}{suffix}"
    return path


def _collect(problems: list[Problem], look: Callable[[], _Found]) -> _Found | None:
    """Do `look`; on a user's mistake note its problems, so that the next look still happens."""
    try:
        return look()
    except UserError as error:
        problems.extend(error.problems)
        return None
