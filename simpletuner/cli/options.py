"""`simpletuner options [NAME]`: the option table on the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from simpletuner.config.resolve import examine
from simpletuner.config.sources import process_environment
from simpletuner.config.surfaces.cli import canonical_name
from simpletuner.config.surfaces.json_schema import dataset_schema, options_schema
from simpletuner.config.surfaces.terminal import describe_option, find_option, list_options
from simpletuner.config.table import OptionSpec, alias_table, dataset_tables, option_table
from simpletuner.config.values import show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import UserError


def run(words: list[str]) -> int:
    """List all options, explain one, or print a JSON Schema."""
    parser = argparse.ArgumentParser("simpletuner options", description="List all options, or explain one.")
    parser.add_argument("name", nargs="?", help="an option, a key of the data set file, or a word to look for")
    parser.add_argument("--all", action="store_true", help="list also what is not built yet")
    parser.add_argument("--schema", choices=("options", "datasets"), help="print a JSON Schema for editors")
    arguments = parser.parse_args(words)
    if arguments.schema:
        schema = options_schema() if arguments.schema == "options" else dataset_schema()
        lines = [json.dumps(schema, indent=2, ensure_ascii=False)]
    elif arguments.name:
        lines = _explain(arguments.name)
    else:
        lines = [*list_options(everything=arguments.all), "", "Explain one: simpletuner options NAME"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _explain(name: str) -> list[str]:
    spec = find_option(canonical_name(name)) or find_option(name)
    if spec is None and (mentions := list_options(everything=True, word=name)):
        return [f"No option is called '{name}'; `simpletuner options NAME` explains one of these:", *mentions]
    if spec is None:
        known = [*option_table(), *alias_table(), *(key for table in dataset_tables().values() for key in table)]
        fix = did_you_mean(canonical_name(name), known) or "`simpletuner options` lists all"
        raise UserError(f"there is no option '{name}'", fix=fix)
    from simpletuner.recipes.check import ABOUT

    return list(describe_option(spec, _setting(spec), ABOUT.get(spec.name, ())))


def _setting(spec: OptionSpec) -> str:
    """What the configuration at hand says, if there is one that can be read; refused values are told too."""
    examination = examine([], process_environment(), Path.cwd())
    config, draft = examination.trial, examination.draft
    if config is None or draft is None or option_table().get(spec.name) != spec:
        return ""
    value = draft.values[spec.name]
    refused = ", refused" if value != config.section(spec.section).model_dump()[spec.name] else ""
    origin = config.origins[spec.name]
    return f"{'***' if spec.facts.secret and value else show(value)} ({origin}{refused})"
