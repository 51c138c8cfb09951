"""The data set file: a list of entries, each checked key by key, global defaults merged in.

Looks at folders only to see whether they are there; clips are opened by the data room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpletuner.config.caption_filters import CaptionFilter
from simpletuner.config.catalogs.backends import BACKENDS
from simpletuner.config.catalogs.captions import STRATEGY_OF_TYPE
from simpletuner.config.dataset import BLOCKS, ClipDataset, TextEmbeds, VideoRules
from simpletuner.config.dataset_entry import EntryReader
from simpletuner.config.dataset_stores import default_store, find_store, read_filters, unknown_store
from simpletuner.config.documents import Document, read_json
from simpletuner.config.foreign_paths import advise_on_path
from simpletuner.config.paths import expand
from simpletuner.config.prompts import safe_nickname
from simpletuner.config.table import dataset_tables
from simpletuner.config.values import UnreadableError, read_value, show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity, UserError

# Options of the run that are only defaults of an entry's key of the same name.
INHERITED = (
    "resolution", "resolution_type", "minimum_image_size", "maximum_image_size", "target_downsample_size",
    "caption_strategy", "instance_prompt", "prepend_instance_prompt", "only_instance_prompt", "missing_captions",
    "max_upscale_threshold", "aspect_bucket_rounding", "aspect_bucket_alignment", "framerate",
)  # fmt: skip
# Options of the run that are defaults of a key inside the `parquet` block.
INHERITED_COLUMNS = {"parquet_caption_column": "caption_column", "parquet_filename_column": "filename_column"}

# Kinds of entries that exist elsewhere, and why they are not taken here.
OTHER_KINDS: Mapping[str, str] = {
    "conditioning": "Not built yet: conditioning data sets",
    "image_embeds": "Not built yet: separate stores for encoded clips (cache_dir_vae says where they go)",
    **dict.fromkeys(
        ("audio", "caption", "grounding", "conditioning_image_embeds", "distillation_cache"),
        "It belongs to other model families",
    ),
}
KINDS = ("video", "image", "eval", "text_embeds")


@dataclass
class DatasetFile:
    """What the file says.

    Attributes:
        datasets: Usable sets of clips and pictures, those for evaluation too, with the caption filters of their
            stores; those with errors are absent.
        text_embeds: Stores of encoded captions.
        written: Id -> keys the person wrote ("resolution", "video.num_frames"), each with its place.
        places: Id -> where the entry stands.
        problems: Findings.
        filters: Id of a store -> its caption filters.
        disabled: Ids of disabled entries.
        broken_stores: Ids of stores with errors.
        broken: Ids of data sets with errors.
    """

    datasets: list[ClipDataset] = field(default_factory=list)
    text_embeds: list[TextEmbeds] = field(default_factory=list)
    written: dict[str, dict[str, str]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    filters: dict[str, tuple[CaptionFilter, ...]] = field(default_factory=dict)
    disabled: list[str] = field(default_factory=list)
    broken_stores: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def where(self, ident: str, key: str = "") -> str:
        """Place of an entry, or of a key in it, for the `where` of a problem."""
        return f"{self.written[ident].get(key, self.places[ident])}: {ident}"


@dataclass(frozen=True)
class Surroundings:
    """What entries may refer to.

    Attributes:
        values: Every option of the run.
        given: Options somebody wrote.
        environment: Environment variables.
        working_folder: Relative paths start here.
        cache_root: Folder of all caches that nobody placed elsewhere.
    """

    values: Mapping[str, Any]
    given: frozenset[str]
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
    folders = (around.working_folder, path.parent)
    for number, entry in enumerate(document.value):
        _read_entry(document, number, entry, around, folders, result)
    _join_stores(result, around)
    return result


def _read_entry(
    document: Document, number: int, entry: Any, around: Surroundings, folders: tuple[Path, ...], result: DatasetFile
) -> None:
    ident = _begin(document, number, entry, result)
    if ident is None:
        return
    reader = EntryReader(document, number, ident, result.problems)
    names = {name: str(around.values[name] or "") for name in ("model_family", "output_dir")} | {"id": ident}
    entry = reader.fill(entry, around.environment, names)
    kind = _kind_of(entry, result, result.places[ident] + f": {ident}")
    if kind is None:
        return
    result.written[ident] = reader.written
    if kind == "text_embeds":
        values = reader.read(entry, dataset_tables()["text_embeds"], ())
        filters = read_filters(values.get("caption_filter_list", []), reader, folders)
        if not reader.failed:
            result.text_embeds.append(TextEmbeds.model_validate(values))
            result.filters[ident] = filters
        else:
            result.broken_stores.append(ident)
        return
    values = _read_clips(entry, kind, reader, around)
    if not reader.failed:
        result.datasets.append(ClipDataset.model_validate(values))
    else:
        result.broken.append(ident)


def _begin(document: Document, number: int, entry: Any, result: DatasetFile) -> str | None:
    """The id of an entry that is to be read; None, with a problem or not, if it is not."""
    place = document.place(number)
    if not isinstance(entry, dict):
        result.problems.append(
            Problem(f"entry {number + 1} is {show(entry)}", "Each entry is an object: { … }", "Correct it", place)
        )
        return None
    ident = entry.get("id")
    if ident is not None and not isinstance(ident, str):
        result.problems.append(Problem(f"id = {show(ident)}", "An id is a text", "Put it in quotes", place))
        return None
    if not ident or not ident.strip():
        result.problems.append(Problem("this entry has no id", "Each entry needs a unique `id`", "Add one", place))
        return None
    if _is_disabled(entry):
        result.disabled.append(ident)
        return None
    if ident in result.places:
        result.problems.append(
            Problem(f"the id '{ident}' is used twice, here and at {result.places[ident]}", "An id must be unique",
                    "Rename one of the entries", f"{place}: {ident}")
        )  # fmt: skip
        return None
    result.places[ident] = place
    return ident


def _is_disabled(entry: Mapping[str, Any]) -> bool:
    try:
        return bool(read_value(dataset_tables()["dataset"]["disabled"], entry.get("disabled", entry.get("disable"))))
    except UnreadableError:  # absent, or told when the keys are read
        return False


def _join_stores(result: DatasetFile, around: Surroundings) -> None:
    """Fill in the folders of the stores, and give each data set the filters of its store."""
    main = default_store(result.text_embeds)
    fallback = around.values["cache_dir_text"] or f"{around.cache_root}/text"
    folder = main.cache_dir if main is not None and main.cache_dir else fallback
    result.text_embeds = [
        store if store.cache_dir else store.model_copy(update={"cache_dir": folder}) for store in result.text_embeds
    ]
    joined = []
    for dataset in result.datasets:
        store = find_store(dataset, result.text_embeds)
        named = dataset.text_embeds
        if store is None and named is not None and named not in result.broken_stores:
            where = result.where(dataset.id, "text_embeds")
            result.problems.append(unknown_store(dataset, result.text_embeds, result.disabled, where))
        joined.append(dataset.with_filters(result.filters[store.id] if store else ()))
    result.datasets = joined


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
    if kind in KINDS:
        return kind
    rule = OTHER_KINDS.get(kind, f"It must be one of: {', '.join(KINDS)}")
    fix = "Remove this entry, or set disabled: true" if kind in OTHER_KINDS else did_you_mean(kind, list(KINDS))
    result.problems.append(Problem(f"dataset_type = {show(written)}", rule, fix, where))
    return None


def _read_clips(entry: dict[str, Any], kind: str, reader: EntryReader, around: Surroundings) -> dict[str, Any]:
    tables = dataset_tables()
    own = reader.read(_with_weights_apart(entry), tables["dataset"], ())
    values = {**{name: around.values[name] for name in INHERITED}, **own, "dataset_type": kind}
    _follow_type(values, own, around)
    columns = {key: around.values[name] for name, key in INHERITED_COLUMNS.items() if around.values[name]}
    for name, section in BLOCKS.items():
        defaults = columns if name == "parquet" else {}
        block = {**defaults, **reader.read(values.pop(name, {}), tables[name], (name,))}
        if not reader.failed and block:
            values[name] = section.model_validate(block)
    _follow_mode(values, around)
    root = around.values["cache_dir_vae"] or f"{around.cache_root}/vae"
    values.setdefault("cache_dir_vae", f"{root}/{safe_nickname(reader.ident)}")
    if "type" in own or entry.get("type") is None:
        _check_place(values, reader, around)
    return values


def _with_weights_apart(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with `crop_aspect_buckets` of the form [{aspect, weight}, …] as two lists; anything else as it is."""
    listed = entry.get("crop_aspect_buckets")
    if not isinstance(listed, list) or not listed:
        return entry
    if not all(isinstance(item, dict) and set(item) == {"aspect", "weight"} for item in listed):
        return entry
    apart = {"aspect": "crop_aspect_buckets", "weight": "crop_aspect_weights"}
    return {**entry, **{key: [item[part] for item in listed] for part, key in apart.items()}}


def _follow_mode(values: dict[str, Any], around: Surroundings) -> None:
    """Where a set of clips does not say whether it trains image-to-video, the run does."""
    rules = values.get("video", VideoRules())
    follows = values["dataset_type"] == "video" and rules.is_i2v is None
    if follows and around.values["ltx_train_mode"] == "i2v":
        values["video"] = rules.model_copy(update={"is_i2v": True})


def _follow_type(values: dict[str, Any], own: Mapping[str, Any], around: Surroundings) -> None:
    """What a place brings along unless somebody decides otherwise: its captions, and facts about its files."""
    kind = values.get("type", "local")
    if "caption_strategy" not in own and "caption_strategy" not in around.given and kind in STRATEGY_OF_TYPE:
        values["caption_strategy"] = STRATEGY_OF_TYPE[kind]
    if kind == "huggingface" and values.get("metadata_backend", "discovery") == "discovery":
        values["metadata_backend"] = "huggingface"


def _check_place(values: Mapping[str, Any], reader: EntryReader, around: Surroundings) -> None:
    """What the entry's `type` needs, and that a local folder is there."""
    kind = values.get("type", "local")
    missing = [key for key in BACKENDS[kind].needs if not values.get(key)]
    for key in missing:
        reader.tell(f"{key} is missing", f"A data set of type '{kind}' needs it", f"Add {key}", ())
    if kind != "local" or missing:
        return
    folder = values["instance_data_dir"]
    path = around.working_folder / expand(folder)
    if not _is_folder(path):
        is_file = _is_file(path)
        reader.tell(
            f"instance_data_dir = {show(folder)}: {'this is a file' if is_file else 'there is no such folder'}",
            f"Looked at {path}; relative paths start at the working folder",
            "Name the folder that holds it"
            if is_file
            else advise_on_path(folder, (around.working_folder,)) or _near_folders(path),
            ("instance_data_dir",),
        )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no folder can have
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _near_folders(path: Path) -> str:
    parent = next((folder for folder in path.parents if _is_folder(folder)), None)
    try:
        children = sorted(parent.iterdir()) if parent else []
    except OSError:
        children = []
    names = [child.name for child in children if not child.name.startswith(".") and _is_folder(child)]
    near = did_you_mean(path.name, names)
    if near:
        return near
    return (
        f"{parent} holds: {', '.join(names[:8])}" if names else "Create the folder and put clips and captions into it"
    )
