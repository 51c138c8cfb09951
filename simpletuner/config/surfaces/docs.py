"""The page `docs/options.md`, computed from the option table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.table import HEADINGS, OptionSpec, dataset_tables, option_table
from simpletuner.config.values import show

INTRODUCTION = """\
# Options · 选项

This page is made from the option table (`make docs`); a test compares the two. 本页由选项表生成。

A value is taken from the strongest source that gives one: command line, then environment variables
(`SIMPLETUNER_<OPTION>`), then `config/<ENV>/config.json` (or `.toml`, `.env`), then `config/config.env`, then the
default of the model family, then the general default. `simpletuner check` tells every problem at once,
`simpletuner options NAME` explains one option.
取值优先级：命令行 > 环境变量 > 所选环境的配置文件 > `config/config.env` > 模型家族的默认值 > 通用默认值。

★ named by the quickstart (快速入门中出现) · ○ known, but the feature is not built yet and any value that would need it
is refused by name (尚未实现) · ✕ cannot be used (不可用) · △ accepted, changes nothing here
(可以写，但不起作用)
"""


def options_page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for section, specs in groupby(option_table().values(), key=lambda spec: spec.section):
        parts.append(_section(section, {spec.name: spec for spec in specs}))
    for section, table in dataset_tables().items():
        parts.append(_section(section, table))
    return "\n".join(parts)


def _section(section: str, table: Mapping[str, OptionSpec]) -> str:
    english, chinese = HEADINGS[section]
    return "\n".join([f"## {english} · {chinese}\n", *_rows(table), ""])


def _rows(table: Mapping[str, OptionSpec]) -> Iterator[str]:
    yield "| option | value | default | meaning | 含义 |"
    yield "|---|---|---|---|---|"
    for spec in table.values():
        name = f"`{spec.name}`{marks(spec)}"
        if spec.facts.aliases:
            name += "<br>also " + ", ".join(f"`{alias}`" for alias in spec.facts.aliases)
        yield f"| {name} | {_value(spec)} | {default_text(spec)} | {_meaning(spec)} | {_cell(spec.facts.zh)} |"


def marks(spec: OptionSpec) -> str:
    """The signs that follow an option's name."""
    facts = spec.facts
    signs = ("★" if facts.guide else "") + ("○" if facts.planned else "")
    return (f" {signs}" if signs else "") + (" ✕" if facts.refused else "") + (" △" if facts.accepted_note else "")


def default_text(spec: OptionSpec) -> str:
    """The default as one would write it, and each family's own; empty when the option has none."""
    if spec.default is ...:
        return "required"
    general = "" if spec.default is None or spec.kind == "block" else f"`{show(spec.default)}`"
    if option_table().get(spec.name) is not spec:
        return general
    own = [
        f"{family}: `{show(FAMILIES[family].defaults[spec.name])}`"
        for family in FAMILIES
        if spec.name in FAMILIES[family].defaults
    ]
    return "; ".join(filter(None, (general, *own)))


def _value(spec: OptionSpec) -> str:
    words = ", ".join(f"`{word}`" for word in spec.choices) if spec.kind == "choice" else spec.type_text
    unit = f" {spec.facts.unit}" if spec.facts.unit else ""
    limits = f"; {spec.range_text}{unit}" if spec.range_text else unit
    return _cell(words + limits)


def _meaning(spec: OptionSpec) -> str:
    facts = spec.facts
    text = facts.help
    if facts.planned:
        text += f" Not built yet: {facts.planned}."
    if facts.refused:
        text += f" Refused: {facts.refused}."
    if facts.accepted_note:
        text += f" Here: {facts.accepted_note}."
    if facts.planned_values:
        text += " Not built yet: " + ", ".join(f"`{word}`" for word in facts.planned_values) + "."
    return _cell(text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
