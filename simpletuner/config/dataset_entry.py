"""Reading the keys of one entry of the data set file, with a finding for each that is wrong.

It must not know which keys belong together; `dataset_rules.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simpletuner.config.dataset import BLOCKS
from simpletuner.config.documents import Document, fill_environment, is_comment, replace_texts
from simpletuner.config.run_config import STARRED
from simpletuner.config.table import OptionSpec, dataset_tables
from simpletuner.config.values import UnreadableError, capitalised, is_absent, read_value, refusal, show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity, UserError


class EntryReader:
    """Reads the keys of one entry and collects what is wrong with them.

    Attributes:
        ident: Id of the entry.
        failed: Whether an error was found.
        written: Keys that were read ("resolution", "video.num_frames"), each with its place.
    """

    def __init__(self, document: Document, number: int, ident: str, problems: list[Problem]) -> None:
        """
        Args:
            document: The file.
            number: Place of the entry in its list, from 0.
            ident: Id of the entry.
            problems: Receives the findings.
        """
        self._document = document
        self._number = number
        self._problems = problems
        self.ident = ident
        self.failed = False
        self.written: dict[str, str] = {}

    def fill(
        self,
        entry: Mapping[str, Any],
        environment: Mapping[str, str],
        names: Mapping[str, str],
        path: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """The entry with `{env:NAME}` and the placeholders `names` replaced in every text; `path` leads to it."""
        filled: dict[str, Any] = {}
        for key, value in entry.items():
            if is_comment(key):
                continue
            here = (*path, key)
            if not path and key in BLOCKS and isinstance(value, Mapping):
                filled[key] = self.fill(value, environment, names, here)
                continue
            try:
                value = fill_environment(value, environment, "")
            except UserError as error:
                for problem in error.problems:
                    self.tell(f"{'.'.join(here)}: {problem.what}", problem.rule, problem.fix, here)
                continue
            filled[key] = replace_texts(value, lambda text: _with_names(text, names))
        return filled

    def read(self, entry: Mapping[str, Any], table: Mapping[str, OptionSpec], path: tuple[str, ...]) -> dict[str, Any]:
        """The readable values of `entry`, keyed by their own names.

        Args:
            entry: What was written.
            table: Rows of the keys that may stand in it.
            path: Keys that lead to it from the entry: () for the entry itself, ("video",) for a block.
        """
        aliases = {alias: spec.name for spec in table.values() for alias in spec.facts.aliases}
        values: dict[str, Any] = {}
        for key, raw in entry.items():
            if is_comment(key):
                continue
            name = aliases.get(key.strip().lstrip("-"), key.strip().lstrip("-"))
            spec = table.get(name)
            if spec is None:
                near = _elsewhere(name, table) or did_you_mean(name, [*table, *aliases])
                what = f"unknown key '{'.'.join((*path, key))}'"
                self.tell(what, "", near or "Remove it, or start its name with _", (*path, key))
            elif name in values:
                self.tell(f"'{name}' is given twice under two names", "", "Remove one of them", (*path, key))
            elif not is_absent(spec, raw):
                self._read_key(spec, raw, (*path, key), values)
        return values

    def _read_key(self, spec: OptionSpec, raw: Any, path: tuple[str, ...], values: dict[str, Any]) -> None:
        shown = STARRED if spec.facts.secret else show(raw)
        written = f"{'.'.join((*path[:-1], spec.name))} = {shown}"
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
        self._problems.append(Problem(what, rule, fix, self._where(path), severity))

    def _where(self, path: tuple[str, ...]) -> str:
        return f"{self._document.place(self._number, *path)}: {self.ident}"


def _with_names(text: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    return text


def _elsewhere(name: str, table: Mapping[str, OptionSpec]) -> str:
    """Where a key belongs that stands in the wrong place; empty if it is not known at all."""
    tables = dataset_tables()
    for block in BLOCKS:
        if name in tables[block] and table is tables["dataset"]:
            return f'It belongs inside the `{block}` block: "{block}": {{"{name}": …}}'
    if name in tables["dataset"]:
        return "It belongs to an entry of clips or images, not here"
    if name in tables["text_embeds"]:
        return f"It belongs to an entry with dataset_type 'text_embeds': {{…, \"{name}\": …}}"
    return ""
