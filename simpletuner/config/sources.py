"""Where options come from: which files apply, what the environment says. The only reader of the environment.

Gives layers of `Given` values, weakest first; whether they are right is decided in `resolve.py`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from simpletuner.config.documents import Document, is_comment, read_env, read_json, read_toml
from simpletuner.config.legacy import ENV_NAMES, LAUNCH_NAMES, OTHER_NAMES, OTHER_PREFIXES, OWN_VARIABLES
from simpletuner.config.presets import preset_folder
from simpletuner.config.surfaces.cli import CONFIG_SUFFIXES, CommandLine, Given, parse_arguments
from simpletuner.config.table import option_table
from simpletuner.config.values import show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity, UserError

PREFIX = "SIMPLETUNER_"

NO_FILE = "no configuration file"
FILE_BACKENDS = ("json", "toml", "env")
BACKEND_VARIABLES = ("SIMPLETUNER_CONFIG_BACKEND", "CONFIG_BACKEND")
OLD_BACKEND_VARIABLE = "CONFIG_TYPE"  # a name that others use too, so that only words we know are heard


@dataclass
class Sources:
    """All that was given, and where further files may lie.

    Attributes:
        layers: Groups of given options, weakest first.
        folder: Folder of the configuration file, or `config`.
        name: How messages call the configuration file.
        problems: Findings so far.
        variables: Environment variables, with those of env files on top.
        env_files: Env files already read.
    """

    folder: Path
    name: str = NO_FILE
    layers: list[tuple[Given, ...]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    env_files: set[Path] = field(default_factory=set)


def process_environment() -> dict[str, str]:
    """A copy of the process's environment variables."""
    return dict(os.environ)


def log_level(environment: Mapping[str, str]) -> str:
    """The wanted level of log messages, upper case; WARNING when nothing is said."""
    return environment.get("SIMPLETUNER_LOG_LEVEL", "").upper() or "WARNING"


def quiet_profiler() -> None:
    """Leave out what PyTorch's profiler tells of itself on stderr; to be asked for before torch is loaded."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def spoken_language(environment: Mapping[str, str]) -> Literal["en", "zh"]:
    """The language of the system as far as this program speaks it: Chinese, or else English."""
    names = (environment.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return "zh" if next(filter(None, names), "").lower().startswith("zh") else "en"


def display_name(path: Path, working_folder: Path) -> str:
    """How messages call a file: relative to the working folder when it lies inside."""
    try:
        return path.relative_to(working_folder).as_posix()
    except ValueError:
        return path.as_posix()


def find_sources(line: CommandLine, environment: Mapping[str, str], working_folder: Path) -> Sources:
    """Read every file and variable that applies.

    Raises:
        UserError: If the selected configuration does not exist or cannot be read.
    """
    sources = Sources(folder=working_folder / "config", variables=dict(environment))
    sources.problems.extend(line.problems)
    selected = _select(line, environment, working_folder)
    if selected is None:
        _read_env_layer(sources, working_folder / "config" / "config.env", working_folder)
        file = _first_file(working_folder / "config", line, environment) or _first_file(
            working_folder, line, environment
        )
        if file is None and not line.overrides:
            raise _nothing_found(working_folder, _told_search(line, environment, "config/ and in the working folder"))
    else:
        file = selected
    if file is not None:
        sources.folder, sources.name = file.parent, display_name(file, working_folder)
        if selected is not None and file.parent.parent == working_folder / "config":
            _read_env_layer(sources, working_folder / "config" / "config.env", working_folder)
            _read_env_layer(sources, file.parent / "config.env", working_folder)
        _read_config_layer(sources, file, working_folder)
    sources.layers.append(tuple(_from_environment(sources, environment)))
    extra = environment.get("TRAINER_EXTRA_ARGS", "")
    if extra:
        sources.layers.append(_extra_arguments(sources, extra, "environment variable TRAINER_EXTRA_ARGS"))
    sources.layers.append(line.overrides)
    return sources


def _environment_name(environment: Mapping[str, str]) -> str:
    for variable in ("SIMPLETUNER_ENVIRONMENT", "SIMPLETUNER_ENV", "ENV"):
        name = environment.get(variable, "").strip()
        if name:
            return "" if name == "default" else name
    return ""


def _select(line: CommandLine, environment: Mapping[str, str], working_folder: Path) -> Path | None:
    """The configuration file somebody named; None when the default place decides."""
    selection = line.selection
    if "config" in selection:
        return _named_file(selection["config"], working_folder)
    if "example" in selection:
        return preset_folder(selection["example"].removeprefix("examples/")) / "config.json"
    name = selection.get("env", "") or _environment_name(environment)
    if name in ("", "default"):
        path = environment.get("CONFIG_PATH", "")
        return _named_file(path, working_folder) if path and "env" not in selection else None
    if name.startswith("examples/"):
        return preset_folder(name.removeprefix("examples/")) / "config.json"
    if name.endswith(CONFIG_SUFFIXES):
        return _named_file(name, working_folder)
    folder = working_folder / "config" / name
    file = _first_file(folder, line, environment)
    if file is None:
        known = sorted(path.parent.name for path in (working_folder / "config").glob("*/config.*"))
        raise UserError(
            f"there is no environment '{name}'",
            _told_search(line, environment, display_name(folder, working_folder)),
            (did_you_mean(name, known) if name not in known else "Ask for the kind of file that is there, or for none")
            or (f"Available: {', '.join(known)}" if known else f"Write config/{name}/config.json"),
        )
    return file


def _named_file(text: str, working_folder: Path) -> Path:
    path = working_folder / Path(text).expanduser()
    candidates = [path, *(path.with_name(path.name + suffix) for suffix in (".json", ".toml")), path / "config.json"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    near = _near_by(path, working_folder)
    raise UserError(
        f"there is no configuration file '{text}'",
        f"Looked at {display_name(path, working_folder)}",
        f"Files near by: {', '.join(near)}" if near else "Check the path; relative paths start at the working folder",
    )


def _near_by(path: Path, working_folder: Path) -> list[str]:
    folders = [folder for folder in (path.parent, working_folder / "config", working_folder) if folder.is_dir()]
    found = {
        file for folder in folders for file in folder.glob("*") if file.suffix in CONFIG_SUFFIXES and file.is_file()
    }
    return [display_name(file, working_folder) for file in sorted(found)][:8]


def _first_file(folder: Path, line: CommandLine, environment: Mapping[str, str]) -> Path | None:
    """The first of config.json, config.toml, config.env in `folder`, or the one the backend asks for."""
    return next((folder / name for name in _file_names(line, environment) if (folder / name).is_file()), None)


def _file_names(line: CommandLine, environment: Mapping[str, str]) -> list[str]:
    """The names a configuration file may have, the first one there wins.

    Raises:
        UserError: If a kind of file is asked for that there is not.
    """
    asked = [("--config_backend", line.selection.get("config_backend", ""))]
    asked += [(name, environment.get(name, "")) for name in BACKEND_VARIABLES]
    source, backend = next(((source, word) for source, word in asked if word.strip()), ("", ""))
    backend, old = backend.strip().lower(), environment.get(OLD_BACKEND_VARIABLE, "").strip().lower()
    if not backend and old in (*FILE_BACKENDS, "cmd"):
        backend = old
    if not backend:
        return [f"config.{kind}" for kind in FILE_BACKENDS]
    if backend == "cmd":
        return []
    if backend not in FILE_BACKENDS:
        raise UserError(
            f"{source} = {show(backend)}",
            f"It must be one of: {', '.join((*FILE_BACKENDS, 'cmd'))}",
            did_you_mean(backend, [*FILE_BACKENDS, "cmd"]) or "Leave it out to take the file that is there",
        )
    return [f"config.{backend}"]


def _told_search(line: CommandLine, environment: Mapping[str, str], where: str) -> str:
    names = _file_names(line, environment)
    if not names:
        return "Looked at the command line alone, as the configuration backend `cmd` asks"
    if len(names) == 1:
        return f"Looked for {names[0]} in {where}, as the configuration backend asks"
    return f"Looked for {', '.join(names[:-1])} and {names[-1]} in {where}"


def _nothing_found(working_folder: Path, looked: str) -> UserError:
    environments = sorted(
        {path.parent.name for kind in FILE_BACKENDS for path in (working_folder / "config").glob(f"*/config.{kind}")}
    )
    fix = (
        "Write one with `simpletuner configure`, start from an example (`simpletuner examples list`), or see the whole "
        "path at work with `simpletuner demo`"
    )
    if environments:
        fix = f"Name one with --env: {', '.join(environments)}. " + fix
    return UserError(
        "there is no configuration",
        looked,
        fix,
    )


def _read_config_layer(sources: Sources, file: Path, working_folder: Path) -> None:
    name = display_name(file, working_folder)
    if file.suffix == ".env":
        _read_env_layer(sources, file, working_folder)
        return
    document = read_toml(file, name) if file.suffix == ".toml" else read_json(file, name)
    sources.layers.append(tuple(_from_document(document)))


def _from_document(document: Document) -> list[Given]:
    value, prefix = document.value, tuple[str, ...]()
    if not isinstance(value, dict):
        raise UserError(
            "a configuration must be one object: { … }", fix="Put the options between braces", where=document.name
        )
    if isinstance(value.get("config"), dict) and all(is_comment(key) or key == "config" for key in value):
        value, prefix = value["config"], ("config",)
    return [
        Given(str(key).strip().lstrip("-"), item, document.place(*prefix, key))
        for key, item in value.items()
        if not is_comment(str(key))
    ]


def _read_env_layer(sources: Sources, path: Path, working_folder: Path) -> None:
    if not path.is_file() or path in sources.env_files:
        return
    sources.env_files.add(path)
    name = display_name(path, working_folder)
    values, lines = read_env(path, name, sources.variables)
    sources.variables.update(values)
    found: list[Given] = []
    for key, value in values.items():
        place = f"{name}:{lines[key]}"
        option = ENV_NAMES.get(key) or (key.lower() if key.lower() in option_table() else "")
        if option:
            found.append(Given(option, value, place))
        elif key == "TRAINER_EXTRA_ARGS":
            sources.layers.append(_extra_arguments(sources, value, place))
        elif key not in OTHER_NAMES and not key.startswith((*OTHER_PREFIXES, PREFIX)):
            sources.problems.append(_no_option(key, place, [*ENV_NAMES, *(name.upper() for name in option_table())]))
    sources.layers.append(tuple(found))


def _extra_arguments(sources: Sources, text: str, origin: str) -> tuple[Given, ...]:
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        sources.problems.append(
            Problem(f"TRAINER_EXTRA_ARGS cannot be read ({error})", fix="Close the quotes", where=origin)
        )
        return ()
    parsed = parse_arguments(words, origin)
    sources.problems.extend(parsed.problems)
    return parsed.overrides


def _from_environment(sources: Sources, environment: Mapping[str, str]) -> list[Given]:
    """Options of the process environment: SIMPLETUNER_<OPTION>, and the launchers' own names."""
    found = []
    for name in LAUNCH_NAMES:
        if environment.get(name):
            found.append(Given(ENV_NAMES.get(name, name.lower()), environment[name], f"environment variable {name}"))
    for variable, value in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable in OWN_VARIABLES:
            continue
        option = variable.removeprefix(PREFIX).lower()
        if option in option_table():
            found.append(Given(option, value, f"environment variable {variable}"))
        else:
            known = [PREFIX + name.upper() for name in option_table()]
            sources.problems.append(_no_option(variable, "environment", known))
    return found


def _no_option(name: str, where: str, known: list[str]) -> Problem:
    near = did_you_mean(name, known)
    return Problem(
        f"variable {name} names no option",
        "It changes nothing",
        near,
        where,
        Severity.WARNING if near else Severity.NOTE,
    )
