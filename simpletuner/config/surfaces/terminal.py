"""One option's page, and the list of all, as plain lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simpletuner.config.rules import RULES
from simpletuner.config.surfaces.docs import default_text, marks
from simpletuner.config.table import HEADINGS, OptionSpec, dataset_tables, option_table


def describe_option(spec: OptionSpec, setting: str = "", further_rules: Sequence[str] = ()) -> Iterator[str]:
    """The page of one option.

    Args:
        spec: Its row.
        setting: What it is set to now, and by whom.
        further_rules: Sentences on rules that other rooms check.
    """
    facts = spec.facts
    yield f"{spec.name}{marks(spec)}   ({HEADINGS[spec.section][0]}, {facts.level})"
    yield f"  {facts.help}"
    yield f"  {facts.zh}"
    yield f"  Value: {', '.join(filter(None, (spec.type_text, spec.range_text)))} {facts.unit}".rstrip()
    yield f"  Default: {default_text(spec).replace('`', '') or 'not given'}"
    if setting:
        yield f"  Now: {setting}"
    if facts.aliases:
        yield f"  Also known as: {', '.join(facts.aliases)}"
    if facts.excludes:
        yield f"  Not together with: {', '.join(facts.excludes)}"
    if facts.planned:
        yield f"  Not built yet: {facts.planned}. Values that would need it are refused."
    if facts.refused:
        yield f"  Refused: {facts.refused}."
    if facts.accepted_note:
        yield f"  Accepted, but {facts.accepted_note}."
    if facts.planned_values:
        yield f"  Known, not built yet: {', '.join(str(word) for word in facts.planned_values)}"
    for sentence in (*rules_about(spec), *further_rules):
        yield f"  Rule: {sentence}."
    related = related_options(spec)
    if related:
        yield f"  Related: {', '.join(related)}"


def rules_about(spec: OptionSpec) -> list[str]:
    """Sentences on the rules across options that read this one, with the other options they read."""
    if spec.name not in option_table() or option_table()[spec.name] != spec:
        return []
    told = []
    for rule in RULES:
        if spec.name in rule.reads:
            others = [name for name in rule.reads if name != spec.name]
            told.append(rule.about + (f" (with {', '.join(others)})" if others else ""))
    return told


def related_options(spec: OptionSpec, limit: int = 8) -> list[str]:
    """Options of the same section that share a word of their name."""
    words = {word for word in spec.name.split("_") if len(word) > 2}
    scored = [
        (len(words.intersection(other.name.split("_"))), other.name)
        for other in option_table().values()
        if other.section == spec.section and other.name != spec.name
    ]
    return [name for score, name in sorted(scored, key=lambda pair: -pair[0]) if score][:limit]


def list_options(*, everything: bool, word: str = "") -> list[str]:
    """All options by section, one line each.

    Args:
        everything: Also those that are not built, do nothing or are refused.
        word: Only those with this word in their name or their help, in any of its languages.
    """
    section, lines, wanted = "", [], word.lower()
    for spec in option_table().values():
        if not everything and (spec.facts.planned or spec.facts.refused or spec.facts.accepted_note):
            continue
        if wanted not in f"{spec.name} {spec.facts.help} {spec.facts.zh}".lower():
            continue
        if spec.section != section:
            section = spec.section
            lines += ["", HEADINGS[section][0]]
        told = _state(spec) + spec.facts.help
        lines.append(f"  {spec.name:<42} {default_text(spec).replace('`', ''):<22.22} {told}")
    return lines


def _state(spec: OptionSpec) -> str:
    """What is to be known of an option that does not simply work; empty for all others."""
    if spec.facts.refused or (spec.facts.planned and not spec.facts.planned_values):
        return "[refused] " if spec.facts.refused else "[not built yet] "
    return "[accepted, has no effect] " if spec.facts.accepted_note else ""


def find_option(name: str) -> OptionSpec | None:
    """The row of an option or of a key of the data set file ("video.num_frames" or "num_frames")."""
    if name in option_table():
        return option_table()[name]
    block, _, key = name.rpartition(".")
    tables = dataset_tables()
    for kind in [block] if block in tables else tables:
        if key in tables[kind]:
            return tables[kind][key]
    return None
