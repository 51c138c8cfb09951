"""The data set file: a list of entries, each checked key by key, global defaults merged in.

Looks at folders only to see whether they are there; clips are opened by the data room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpletuner.config.catalogs.backends import BACKENDS
from simpletuner.config.dataset import BLOCKS, ClipDataset, TextEmbeds
from simpletuner.config.documents import Document, fill_environment, is_comment, read_json, replace_texts
from simpletuner.config.prompts import safe_nickname
from simpletuner.config.table import OptionSpec, dataset_tables
from simpletuner.config.values import FALSE, UnreadableError, capitalised, is_absent, read_value, refusal, show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity, UserError

# Options of the run that are only defaults of an entry's key of the same name.
INHERITED = (
    "resolution", "resolution_type", "minimum_image_size", "maximum_image_size", "target_downsample_size",
    "caption_strategy", "instance_prompt", "aspect_bucket_rounding", "aspect_bucket_alignment", "framerate",
)  # fmt: skip

# Kinds of entries that exist elsewhere, and why they are not taken here.
OTHER_KINDS: Mapping[str, str] = {
    "eval": "Not built yet: evaluation sets",
    "conditioning": "Not built yet: conditioning data sets",
    "image_embeds": "Not built yet: separate stores for encoded clips (cache_dir_vae says where they go)",
    **dict.fromkeys(
        ("audio", "caption", "grounding", "conditioning_image_embeds", "distillation_cache"),
        "It belongs to other model families",
    ),
}
KINDS = ("video", "image", "text_embeds", *OTHER_KINDS)


@dataclass
class DatasetFile:
    """What the file says.

    Attributes:
        datasets: Usable clip and image sets; empty when there is an error.
        text_embeds: Stores of encoded captions.
        written: Id -> keys the person wrote ("resolution", "video.num_frames"), each with its place.
        places: Id -> where the entry stands.
        problems: Findings.
    """

    datasets: list[ClipDataset] = field(default_factory=list)
    text_embeds: list[TextEmbeds] = field(default_factory=list)
    written: dict[str, dict[str, str]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def where(self, ident: str, key: str = "") -> str:
        """Place of an entry, or of a key in it, for the `where` of a problem."""
        return f"{self.written[ident].get(key, self.places[ident])}: {ident}"


@dataclass(frozen=True)
class Surroundings:
    """What entries may refer to: options of the run, folders, environment variables."""

    values: Mapping[str, Any]
    environment: Mapping[str, str]
    working_folder: Path
    cache_root: str


def read_dataset_file(path: Path, name: str, around: Surroundings) -> DatasetFile:
    """Read and check the file at `path`; all problems are in the result, none is raised."""
    result = DatasetFile()
    try:
        document = read_json(path, name)
    except UserError as error:
        result.problems.extend(error.problems)
        return result
    if not isinstance(document.value, list):
        result.problems.append(
            Problem("the file holds no list", "A data set file is a list of entries: [ { … }, { … } ]",
                    "Put brackets around the entries", name)
        )  # fmt: skip
        return result
    for number, entry in enumerate(document.value):
        _read_entry(document, number, entry, around, result)
    return result


def _read_entry(document: Document, number: int, entry: Any, around: Surroundings, result: DatasetFile) -> None:
    place = document.place(number)
    if not isinstance(entry, dict):
        result.problems.append(
            Problem(f"entry {number + 1} is {show(entry)}", "Each entry is an object: { … }", "Correct it", place)
        )
        return
    ident = entry.get("id")
    if not isinstance(ident, str) or not ident.strip():
        result.problems.append(Problem("this entry has no id", "Each entry needs a unique `id`", "Add one", place))
        return
    if _is_disabled(entry):
        return
    if ident in result.places:
        result.problems.append(
            Problem(f"the id '{ident}' is used twice, here and at {result.places[ident]}", "An id must be unique",
                    "Rename one of the entries", f"{place}: {ident}")
        )  # fmt: skip
        return
    result.places[ident] = place
    try:
        entry = fill_environment(entry, around.environment, f"{place}: {ident}")
    except UserError as error:
        result.problems.extend(error.problems)
        return
    entry = replace_texts(entry, lambda text: _fill(text, ident, around))
    kind = _kind_of(entry, result, f"{place}: {ident}")
    if kind is None:
        return
    reader = _EntryReader(document, number, ident, result.problems)
    if kind == "text_embeds":
        values = reader.read(entry, dataset_tables()["text_embeds"], ())
        values.setdefault("cache_dir", around.values["cache_dir_text"] or f"{around.cache_root}/text")
        if not reader.failed:
            result.text_embeds.append(TextEmbeds.model_validate(values))
        return
    values = _read_clips(entry, kind, reader, around)
    result.written[ident] = reader.written
    if not reader.failed:
        result.datasets.append(ClipDataset.model_validate(values))


def _is_disabled(entry: Mapping[str, Any]) -> bool:
    value = entry.get("disabled", entry.get("disable", False))
    return value is True or (isinstance(value, str) and value.strip().lower() not in (*FALSE, "")) or value == 1


def _fill(text: str, ident: str, around: Surroundings) -> str:
    known = {"id": ident, "model_family": around.values["model_family"], "output_dir": around.values["output_dir"]}
    for name, value in known.items():
        text = text.replace("{" + name + "}", str(value or ""))
    return text


def _kind_of(entry: Mapping[str, Any], result: DatasetFile, where: str) -> str | None:
    written = entry.get("dataset_type")
    if written is None:
        result.problems.append(
            Problem(
                "dataset_type is absent: read as 'video'",
                fix="Write it to be sure",
                where=where,
                severity=Severity.NOTE,
            )
        )
        return "video"
    kind = str(written).strip().lower()
    if kind in ("video", "image", "text_embeds"):
        return kind
    rule = OTHER_KINDS.get(kind, f"It must be one of: {', '.join(KINDS[:3])}")
    fix = "Remove this entry, or set disabled: true" if kind in OTHER_KINDS else did_you_mean(kind, list(KINDS[:3]))
    result.problems.append(Problem(f"dataset_type = {show(written)}", rule, fix, where))
    return None


def _read_clips(entry: dict[str, Any], kind: str, reader: _EntryReader, around: Surroundings) -> dict[str, Any]:
    inherited = {name: around.values[name] for name in INHERITED}
    values = {**inherited, **reader.read(entry, dataset_tables()["dataset"], ())}
    values["dataset_type"] = kind
    for name, section in BLOCKS.items():
        block = values.pop(name, None)
        if isinstance(block, Mapping):
            rules = reader.read(dict(block), dataset_tables()[name], (name,))
            if not reader.failed:
                values[name] = section.model_validate(rules)
    root = around.values["cache_dir_vae"] or f"{around.cache_root}/vae"
    values.setdefault("cache_dir_vae", f"{root}/{safe_nickname(reader.ident)}")
    _check_place(values, reader, around)
    return values


def _check_place(values: Mapping[str, Any], reader: _EntryReader, around: Surroundings) -> None:
    """What the entry's `type` needs, and that a local folder is there."""
    kind = values.get("type", "local")
    missing = [key for key in BACKENDS[kind].needs if not values.get(key)]
    for key in missing:
        reader.tell(f"{key} is missing", f"A data set of type '{kind}' needs it", f"Add {key}", ())
    if kind != "local" or missing:
        return
    folder = values["instance_data_dir"]
    path = around.working_folder / Path(folder).expanduser()
    if not path.is_dir():
        reader.tell(
            f"instance_data_dir = {show(folder)}: there is no such folder",
            f"Looked at {path}; relative paths start at the working folder",
            _near_folders(path),
            ("instance_data_dir",),
        )


def _near_folders(path: Path) -> str:
    parent = next((folder for folder in path.parents if folder.is_dir()), None)
    names = (
        sorted(child.name for child in parent.iterdir() if child.is_dir() and not child.name.startswith("."))
        if parent
        else []
    )
    near = did_you_mean(path.name, names)
    if near:
        return near
    return (
        f"{parent} holds: {', '.join(names[:8])}" if names else "Create the folder and put clips and captions into it"
    )


class _EntryReader:
    """Reads the keys of one entry and collects what is wrong with them."""

    def __init__(self, document: Document, number: int, ident: str, problems: list[Problem]) -> None:
        self._document = document
        self._number = number
        self._problems = problems
        self.ident = ident
        self.failed = False
        self.written: dict[str, str] = {}

    def read(self, entry: Mapping[str, Any], table: Mapping[str, OptionSpec], path: tuple[str, ...]) -> dict[str, Any]:
        """The readable values of `entry`, keyed by their own names."""
        aliases = {alias: spec.name for spec in table.values() for alias in spec.facts.aliases}
        values: dict[str, Any] = {}
        for key, raw in entry.items():
            if is_comment(key):
                continue
            name = aliases.get(key.strip().lstrip("-"), key.strip().lstrip("-"))
            spec = table.get(name)
            if spec is None:
                near = _elsewhere(name) or did_you_mean(name, [*table, *aliases])
                self.tell(
                    f"unknown key '{'.'.join((*path, key))}'",
                    "",
                    near or "Remove it, or start its name with _",
                    (*path, key),
                )
            elif name in values:
                self.tell(f"'{name}' is given twice under two names", "", "Remove one of them", (*path, key))
            elif not is_absent(spec, raw):
                self._read_key(spec, raw, (*path, key), values)
        return values

    def _read_key(self, spec: OptionSpec, raw: Any, path: tuple[str, ...], values: dict[str, Any]) -> None:
        written = f"{'.'.join((*path[:-1], spec.name))} = {show(raw)}"
        try:
            value = read_value(spec, raw)
        except UnreadableError as error:
            self.tell(written, error.rule, error.fix or "Correct the value", path)
            return
        refused = refusal(spec, value)
        if refused:
            self.tell(written, *refused, path)
            return
        if spec.facts.planned and value != spec.default:
            return  # a word that switches the feature off
        values[spec.name] = value
        self.written[".".join((*path[:-1], spec.name))] = self._document.place(self._number, *path)
        if spec.facts.accepted_note:
            self.tell(written, capitalised(spec.facts.accepted_note), "", path, Severity.NOTE)

    def tell(self, what: str, rule: str, fix: str, path: tuple[str, ...], severity: Severity = Severity.ERROR) -> None:
        """Keep a finding about the key at `path` of this entry."""
        self.failed = self.failed or severity is Severity.ERROR
        place = self._document.place(self._number, *path)
        where = f"{place}: {self.ident}"
        self._problems.append(Problem(what, rule, fix, where, severity))


def _elsewhere(name: str) -> str:
    for block in BLOCKS:
        if name in dataset_tables()[block]:
            return f'It belongs inside the `{block}` block: "{block}": {{"{name}": …}}'
    if name in dataset_tables()["dataset"]:
        return "It belongs to the entry itself, not into this block"
    return ""
