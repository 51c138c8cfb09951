"""From arguments, environment and files to one `RunConfig`, with all problems told at once.

The walk: find the sources, merge their layers, read each value, read the data set file and the
prompts, apply the rules across options. Nothing heavy is imported and no clip is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.config.catalogs.families import default_origin, family_defaults
from simpletuner.config.catalogs.prompt_libraries import read_built_in
from simpletuner.config.dataset import TextEmbeds
from simpletuner.config.dataset_file import DatasetFile, Surroundings, read_dataset_file
from simpletuner.config.dataset_rules import check_datasets
from simpletuner.config.dataset_stores import default_store
from simpletuner.config.documents import fill_environment
from simpletuner.config.draft import Draft
from simpletuner.config.foreign_paths import advise_on_path
from simpletuner.config.legacy import REMOVED_OPTIMIZERS
from simpletuner.config.named_files import NamedFiles, read_named_files
from simpletuner.config.paths import check_paths, expand
from simpletuner.config.prompts import name_prompts, read_library
from simpletuner.config.rules import apply_rules
from simpletuner.config.run_config import RunConfig, ValidationPrompt
from simpletuner.config.sources import Sources, display_name, find_sources
from simpletuner.config.surfaces.cli import Given, canonical_name, parse_arguments
from simpletuner.config.table import SECTIONS, OptionSpec, alias_table, dataset_tables, option_table
from simpletuner.config.validation_inputs import read_inputs
from simpletuner.config.values import UnreadableError, capitalised, is_absent, read_value, refusal, show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity, UserError

ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}

# Texts whose `{env:NAME}` is filled where they are used, by rules of their own.
FILLED_LATER = ("modelspec_comment",)


@dataclass(frozen=True)
class Examination:
    """The result of looking at a configuration.

    Attributes:
        problems: Findings by severity.
        config: The run if it can start, else None.
        trial: The run as far as it can be told, also with errors: what is refused or could not be
            read has its default. For plans and checks only; None when no configuration was found.
        draft: Every option as written, the refused ones too.
    """

    problems: tuple[Problem, ...]
    config: RunConfig | None
    trial: RunConfig | None = None
    draft: Draft | None = None

    @property
    def has_errors(self) -> bool:
        return any(problem.severity is Severity.ERROR for problem in self.problems)


def resolve_config(arguments: Sequence[str], environment: Mapping[str, str], working_folder: Path) -> RunConfig:
    """The configuration of a run.

    Args:
        arguments: Overrides and selectors of the command line, without the command itself.
        environment: Environment variables.
        working_folder: Relative paths start here.
    Raises:
        UserError: With all problems (warnings and notes too) if there is any error.
    """
    examination = examine(arguments, environment, working_folder)
    if examination.config is None:
        raise UserError.of(examination.problems)
    return examination.config


def examine(arguments: Sequence[str], environment: Mapping[str, str], working_folder: Path) -> Examination:
    """Look at everything and collect findings instead of raising them."""
    line = parse_arguments(arguments)
    try:
        sources = find_sources(line, environment, working_folder)
    except UserError as error:
        return Examination((*line.problems, *error.problems), None)
    reading = _Reading(sources)
    values = reading.values()
    library, found = _read_prompts(sources, reading, values, working_folder)
    reading.problems.extend(found)
    draft = Draft(
        values={**values, **reading.refused},
        given=frozenset(reading.origins),
        origins=reading.origins,
        prompts=name_prompts(values["validation_prompt"], library),
    )
    reading.problems.extend(apply_rules(draft, frozenset(reading.unreadable)))
    reading.problems.extend(check_paths(draft, frozenset(reading.unreadable), working_folder))
    file = _read_datasets(sources, draft, reading, working_folder)
    named = _read_named_files(draft, sources, working_folder)
    reading.problems.extend(named.problems)
    problems = tuple(sorted((*reading.problems, *file.problems), key=lambda problem: ORDER[problem.severity]))
    trial = _build(values, reading, file, named, draft, problems)
    if any(problem.severity is Severity.ERROR for problem in problems):
        return Examination(problems, None, trial, draft)
    return Examination(problems, trial, trial, draft)


class _Reading:
    """Merges the layers, reads every value, and keeps what it finds."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self.problems: list[Problem] = list(sources.problems)
        self.origins: dict[str, str] = {}
        self.unreadable: set[str] = set()
        self.refused: dict[str, Any] = {}
        self.family_defaults: Mapping[str, Any] = {}

    def values(self) -> dict[str, Any]:
        """Every option's value; the family's default, else the general one, where none could be read."""
        winners = self._winners()
        self.family_defaults = family_defaults(self._family(winners))
        values = {name: spec.default for name, spec in option_table().items()} | dict(self.family_defaults)
        for name, given in winners.items():
            spec = option_table()[name]
            try:
                raw = given.value
                if name not in FILLED_LATER:
                    raw = fill_environment(raw, self._sources.variables, f"{given.origin}: {name}")
            except UserError as error:
                self.problems.extend(error.problems)
                self.unreadable.add(name)
                continue
            if not is_absent(spec, raw):
                self._read(spec, raw, given, values)
        return values

    def _family(self, winners: Mapping[str, Given]) -> str | None:
        """The family, read ahead of everything else because defaults follow from it; its problems come later."""
        try:
            raw = winners["model_family"].value
            return str(read_value(option_table()["model_family"], fill_environment(raw, self._sources.variables, "")))
        except (KeyError, UserError, UnreadableError):
            return None

    def _winners(self) -> dict[str, Given]:
        """The strongest source of each option; unknown names become problems."""
        winners: dict[str, Given] = {}
        for layer in self._sources.layers:
            seen: dict[str, Given] = {}
            for given in layer:
                name = canonical_name(given.key)
                if name not in option_table():
                    self.problems.append(_unknown(given))
                    continue
                if name in seen:
                    self._twice(name, seen[name], given)
                seen[name] = given
            winners.update(seen)
        return winners

    def _twice(self, name: str, first: Given, second: Given) -> None:
        self.problems.append(
            Problem(
                f"'{name}' is given twice: as '{first.key}' ({first.origin}) and as '{second.key}'",
                "Both names mean the same option",
                "Remove one of them",
                second.origin,
            )
        )

    def _read(self, spec: OptionSpec, raw: Any, given: Given, values: dict[str, Any]) -> None:
        where = given.origin
        written = f"{spec.name} = {show(raw)}"
        try:
            value = read_value(spec, raw)
        except UnreadableError as error:
            self.unreadable.add(spec.name)
            advice = REMOVED_OPTIMIZERS.get(str(raw).lower()) if spec.name == "optimizer" else None
            fix = advice or error.fix or f"Correct the value (`simpletuner options {spec.name}` explains it)"
            self.problems.append(Problem(written, error.rule, fix, where))
            return
        self.origins[spec.name] = given.origin
        refused = refusal(spec, value)
        if refused:
            self.refused[spec.name] = value
            self.problems.append(Problem(written, *refused, where))
            return
        if not spec.facts.planned and not spec.facts.refused:
            values[spec.name] = value
        if given.key.lstrip("-").replace("-", "_") in alias_table():
            self._note(f"'{given.key}' is the old name of '{spec.name}'", where)
        if spec.facts.accepted_note:
            self._note(written, where, capitalised(spec.facts.accepted_note))

    def _note(self, what: str, where: str, rule: str = "") -> None:
        self.problems.append(Problem(what, rule, "", where, Severity.NOTE))


_FLAGS = {"dryrun": "Write `simpletuner train --dry-run`, or `simpletuner plan`"}  # of commands, as people guess them


def _unknown(given: Given) -> Problem:
    name = canonical_name(given.key)
    rule, fix = "", did_you_mean(name, [*option_table(), *alias_table()])
    if not fix and any(name in table for table in dataset_tables().values()):
        rule, fix = "It is a key of the data set file", "Move it there, into the entry it is meant for"
    return Problem(
        f"unknown option '{given.key}'",
        rule,
        fix or _FLAGS.get(name.replace("_", "")) or "Remove it; `simpletuner options` lists all options",
        given.origin,
    )


def find_named_file(text: str, sources: Sources, working_folder: Path) -> Path | None:
    """A file that the configuration names: from the working folder, else beside the configuration."""
    path = expand(text)
    return next((found for found in (working_folder / path, sources.folder / path) if found.is_file()), None)


def _read_prompts(
    sources: Sources, reading: _Reading, values: Mapping[str, Any], working_folder: Path
) -> tuple[list[ValidationPrompt], list[Problem]]:
    """The prompts of the files that the options name, those with a picture last."""

    def read_list(path: Path, name: str) -> tuple[list[ValidationPrompt], list[Problem]]:
        return read_inputs(path, name, (working_folder, path.parent))

    built_in = read_built_in(str(values["validation_prompt_library"]))
    prompts = [ValidationPrompt(nickname, prompt) for nickname, prompt in built_in.items()]
    problems: list[Problem] = []
    for option, read in (("user_prompt_library", read_library), ("validation_input", read_list)):
        if not values[option]:
            continue
        path = find_named_file(values[option], sources, working_folder)
        if path is None:
            where = reading.origins.get(option, sources.name)
            problems.append(_missing_file(option, values[option], sources, working_folder, f"{option}*.json", where))
            continue
        found, told = read(path, display_name(path, working_folder))
        prompts += found
        problems += told
    return prompts, problems


def _missing_file(option: str, text: str, sources: Sources, working_folder: Path, pattern: str, where: str) -> Problem:
    beside = sources.folder / text
    looked = [working_folder / text, *([beside] if beside.parent.is_dir() else [])]
    folders = {*(path.parent for path in looked), working_folder, working_folder / "config", sources.folder}
    near = sorted({file for folder in folders if folder.is_dir() for file in folder.glob(pattern)})
    names = ", ".join(display_name(file, working_folder) for file in near[:6])
    home = next((folder for folder in sources.folder.parents if (folder / text).is_file()), None)
    fix = f"Run the command in {home}, where this path leads to a file" if home else advise_on_path(text, folders)
    is_folder = looked[0].is_dir()
    inside = sorted(looked[0].glob(pattern)) if is_folder else []
    inside = [file for file in inside if file.name.startswith("pytorch_lora")] or inside
    if inside:
        fix = f"Name the file in it: {', '.join(display_name(file, working_folder) for file in inside[:6])}"
    return Problem(
        f"{option} = {show(text)}: {'this is a folder' if is_folder else 'there is no such file'}",
        f"Looked at {' and '.join(dict.fromkeys(display_name(path, working_folder) for path in looked))}",
        fix or (f"Files near by: {names}" if names else "Write the file, or correct the path"),
        where,
    )


def _read_datasets(sources: Sources, draft: Draft, reading: _Reading, working_folder: Path) -> DatasetFile:
    written = draft.values["data_backend_config"]
    text = written or "multidatabackend.json"
    path = find_named_file(text, sources, working_folder)
    if path is None and not written:
        path = find_named_file("config/multidatabackend.json", sources, working_folder)
    if path is None:
        where = reading.origins.get("data_backend_config", sources.name)
        missing = _missing_file("data_backend_config", text, sources, working_folder, "*databackend*.json", where)
        return DatasetFile(problems=[missing])
    name = display_name(path, working_folder)
    cache_root = draft.values["cache_dir"] or f"{draft.values['output_dir']}/cache"
    around = Surroundings(draft.values, draft.given, sources.variables, working_folder, cache_root)
    file = read_dataset_file(path, name, around)
    file.problems.extend(check_datasets(file, draft, name))
    return file


def _read_named_files(draft: Draft, sources: Sources, working_folder: Path) -> NamedFiles:
    def missing(option: str, text: str, pattern: str) -> Problem:
        return _missing_file(option, text, sources, working_folder, pattern, draft.place(option))

    return read_named_files(
        draft,
        lambda text: find_named_file(text, sources, working_folder),
        missing,
        lambda path: display_name(path, working_folder),
    )


def _choose_store(file: DatasetFile, values: Mapping[str, Any]) -> tuple[TextEmbeds, Problem | None]:
    store = default_store(file.text_embeds)
    if store is not None:
        return store, None
    folder = values["cache_dir_text"] or f"{values['cache_dir'] or values['output_dir'] + '/cache'}/text"
    note = Problem(f"no text_embeds entry: encoded captions go to {folder}", severity=Severity.NOTE)
    return TextEmbeds(id="text-embeds", cache_dir=folder, default=True), note


def _as_read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values after the readings which a rule has told as a note."""
    warmed = values["lr_scheduler"] == "constant" and values["lr_warmup_steps"]
    return {**values, **({"lr_scheduler": "constant_with_warmup"} if warmed else {})}


def _build(
    values: Mapping[str, Any],
    reading: _Reading,
    file: DatasetFile,
    named: NamedFiles,
    draft: Draft,
    problems: tuple[Problem, ...],
) -> RunConfig:
    store, note = _choose_store(file, values)
    table = option_table()
    values = {**_as_read(values), **named.replaced}
    origin = default_origin(str(values["model_family"]))
    origins = {**dict.fromkeys(reading.family_defaults, origin), **reading.origins}
    given: dict[str, dict[str, Any]] = {attribute: {} for attribute in SECTIONS}
    for name in origins:
        if values[name] != table[name].default:
            given[table[name].section][name] = values[name]
    sections: dict[str, Any] = {
        # Defaults are not validated, so that a section of defaults needs no validator.
        attribute: section.model_validate(given[attribute]) if given[attribute] else section.model_construct()
        for attribute, section in SECTIONS.items()
    }
    return RunConfig(
        datasets=tuple(dataset for dataset in file.datasets if not dataset.is_evaluation),
        eval_datasets=tuple(dataset for dataset in file.datasets if dataset.is_evaluation),
        text_embeds=store,
        prompts=draft.prompts,
        origins={name: origins.get(name, "default") for name in table},
        notices=(*problems, *([note] if note else [])),
        lycoris=named.lycoris if values["lora_type"] == "lycoris" else None,
        webhooks=named.webhooks,
        places=named.places,
        **sections,
    )
