"""JSON Schema of the configuration and of the data set file, for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simpletuner.config.catalogs.backends import BACKENDS
from simpletuner.config.catalogs.captions import CAPTIONS
from simpletuner.config.dataset import BLOCKS
from simpletuner.config.dataset_places import KEYS_OF_TYPE
from simpletuner.config.table import OptionSpec, dataset_tables, option_table

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES: Mapping[str, str] = {
    "bool": "boolean", "int": "integer", "float": "number", "text": "string", "text or texts": "string",
    "texts": "array", "numbers": "array", "block": "object",
}  # fmt: skip


def options_schema() -> dict[str, Any]:
    """Schema of config.json."""
    return {
        "$schema": DIALECT,
        "title": "Options of a training run",
        "type": "object",
        "properties": _properties(option_table()),
        "required": ["model_family", "model_type"],
        "additionalProperties": False,
    }


def dataset_schema() -> dict[str, Any]:
    """Schema of multidatabackend.json: one object per `dataset_type` and `type`, each with its own keys."""
    entries = [_clips_schema(kind, place) for kind in ("video", "image", "eval") for place in BACKENDS]
    stores = _object(_properties(dataset_tables()["text_embeds"]), ["id", "dataset_type"])
    return {"$schema": DIALECT, "title": "Data sets", "type": "array", "items": {"anyOf": [*entries, stores]}}


def _clips_schema(kind: str, place: str) -> dict[str, Any]:
    """An entry of clips or images (`kind`) that lie in one kind of `place`."""
    tables = dataset_tables()
    foreign = {key for keys in KEYS_OF_TYPE.values() for key in keys}.difference(KEYS_OF_TYPE[place])
    keys = _properties({name: spec for name, spec in tables["dataset"].items() if name not in foreign})
    for name in BLOCKS:
        if name in keys:
            keys[name] = _object(_properties(tables[name]), [])
    if kind == "image":
        del keys["video"]
    keys["dataset_type"] = {**keys["dataset_type"], "enum": [kind]}
    keys["type"] = {**keys["type"], "enum": [place]}
    fitting = [name for name in CAPTIONS if not CAPTIONS[name].types or place in CAPTIONS[name].types]
    keys["caption_strategy"] = {**keys["caption_strategy"], "enum": fitting}
    tags = ["dataset_type"] * (kind != "video") + ["type"] * (place != "local")
    return _object(keys, ["id", *tags, *BACKENDS[place].needs])


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": {"^(_|//|#)": {}},  # remarks of the person who wrote the file
        "required": required,
        "additionalProperties": False,
    }


def _properties(table: Mapping[str, OptionSpec]) -> dict[str, Any]:
    return {name: _property(spec) for name, spec in table.items()}


def _property(spec: OptionSpec) -> dict[str, Any]:
    described: dict[str, Any] = {"description": spec.facts.help}
    if spec.kind == "choice":
        described["enum"] = [*spec.known_choices, *([None] if spec.nullable else [])]
    elif spec.kind in TYPES:
        several = ["array"] if spec.kind == "text or texts" else []
        kinds = [
            TYPES[spec.kind],
            *several,
            *(["string"] if spec.choices else []),
            *(["null"] if spec.nullable else []),
        ]
        described["type"] = kinds if len(kinds) > 1 else kinds[0]
    low = "exclusiveMinimum" if spec.open_minimum else "minimum"
    high = "exclusiveMaximum" if spec.open_maximum else "maximum"
    described.update({key: value for key, value in ((low, spec.minimum), (high, spec.maximum)) if value is not None})
    if spec.default not in (..., None) and spec.kind != "block":
        described["default"] = spec.default
    if spec.facts.planned or spec.facts.refused:
        described["deprecated"] = True
        described["$comment"] = f"not built yet: {spec.facts.planned}" if spec.facts.planned else spec.facts.refused
    return described
