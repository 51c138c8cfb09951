"""JSON Schema of the configuration and of the data set file, for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simpletuner.config.dataset import BLOCKS
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
    """Schema of multidatabackend.json."""
    tables = dataset_tables()
    clips = _properties(tables["dataset"])
    for name in BLOCKS:
        clips[name] = {"type": "object", "properties": _properties(tables[name]), "additionalProperties": False}
    entries = [
        {"type": "object", "properties": clips, "required": ["id"], "additionalProperties": False},
        {
            "type": "object",
            "properties": _properties(tables["text_embeds"]),
            "required": ["id", "dataset_type"],
            "additionalProperties": False,
        },
    ]
    return {"$schema": DIALECT, "title": "Data sets", "type": "array", "items": {"anyOf": entries}}


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
