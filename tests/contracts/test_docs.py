"""What the documents tell people to type works: commands, options, JSON, links; both languages say the same."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from simpletuner.cli.main import COMMANDS, PLANNED
from simpletuner.config.documents import parse_json
from simpletuner.config.presets import preset_names
from simpletuner.config.resolve import examine
from simpletuner.config.surfaces.cli import canonical_name, parse_arguments
from simpletuner.config.surfaces.terminal import list_options
from simpletuner.config.table import OptionSpec, alias_table, dataset_tables, option_table

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("simpletuner/examples/*/*.md")]
)
TRANSLATED = ("README", "docs/quickstart")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def every_option() -> dict[str, OptionSpec]:
    """All options and data set keys by name; for a name that is both, the option."""
    keys = {name: spec for table in dataset_tables().values() for name, spec in table.items()}
    return {**keys, **option_table()}


# --- commands ----------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[str]:
    """Lines of shell blocks, and commands mentioned in running text."""
    for language, body in FENCE.findall(text):
        if language in ("bash", "sh"):
            yield from (line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for span in INLINE.findall(FENCE.sub("", text)):
        if re.match(r"(simpletuner|make|\./\w+\.sh|scripts/\w+\.sh) ?(?=[\w.-]|$)", span):
            yield span


def command_fault(line: str) -> str:
    """What is wrong with a documented command; empty if nothing, or if the command is not ours."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if not words:
        return ""
    program, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        return "" if set(rest) <= targets else f"unknown target in {rest}"
    if program.endswith(".sh"):
        return "" if os.access(REPOSITORY / program, os.X_OK) else "no such script"
    return own_command_fault(rest) if program == "simpletuner" else ""


def own_command_fault(words: list[str]) -> str:
    if not words or words[0] in ("--help", "--version"):
        return ""
    name, rest = words[0], [word for word in words[1:] if word not in ("NAME", "…")]
    if name in PLANNED:
        return ""
    if name not in COMMANDS:
        return f"no command '{name}'"
    if name in ("train", "check"):
        line = parse_arguments(rest)
        unknown = [given.key for given in line.overrides if canonical_name(given.key) not in option_table()]
        return f"{line.problems} {unknown}" if line.problems or unknown else ""
    if name == "options":
        named = [word for word in rest if not word.startswith("-")]
        unknown = [
            word
            for word in named
            if canonical_name(word) not in every_option() and not list_options(everything=True, word=word)
        ]
        return f"no option {unknown}" if unknown else ""
    if name == "examples" and rest[:1] in (["copy"], ["show"]):
        return "" if rest[1] in preset_names() else f"no example '{rest[1]}'"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    faults = {line: command_fault(line) for line in commands(page.read_text(encoding="utf-8"))}
    assert {line: fault for line, fault in faults.items() if fault} == {}


@pytest.mark.parametrize(
    "line",
    [
        "simpletuner trian",
        ".venv/bin/simpletuner train lora_rnak=4",
        "simpletuner options lora_rnak",
        "simpletuner examples copy nothing",
        "ENV=x ./tarin.sh",
        "make tset",
    ],
)
def test_wrong_commands_are_caught(line: str) -> None:
    assert command_fault(line)


def test_commands_are_found() -> None:
    text = (
        "```bash\n# note\nmake a   # why\n```\nand `simpletuner demo` or `simpletuner`, not `simpletuner/cli/main.py`"
    )
    assert list(commands(text)) == ["make a   # why", "simpletuner demo", "simpletuner"]


# --- options and JSON ---------------------------------------------------------------------------------


def option_like(text: str) -> set[str]:
    """Words in code marks, outside blocks, that look like option names."""
    spans = (span.removeprefix("video.") for span in INLINE.findall(FENCE.sub("", text)))
    return {span for span in spans if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", span)}


@pytest.mark.parametrize("stem", TRANSLATED)
@pytest.mark.parametrize("language", [".md", ".zh.md"])
def test_named_options_exist(stem: str, language: str) -> None:
    values = {choice for spec in every_option().values() for choice in spec.choices}
    named = option_like((REPOSITORY / f"{stem}{language}").read_text(encoding="utf-8"))
    assert named - set(every_option()) - set(alias_table()) - values == set()


def json_blocks(page: Path) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language.startswith("json")]


@pytest.mark.parametrize("language", [".md", ".zh.md"])
def test_documented_configuration_can_be_trained(language: str, tmp_path: Path) -> None:
    """The quickstart's blocks, pasted as a user would: data set file, configuration, library, then the fragments;
    further data sets join those of the file."""
    texts = json_blocks(REPOSITORY / f"docs/quickstart{language}")
    values = [parse_json(text, "block").value for text in texts]
    datasets = [text for text, value in zip(texts, values, strict=True) if isinstance(value, list)]
    options = [value for value in values if isinstance(value, dict) and set(value) <= set(option_table())]
    libraries = [
        text for text, value in zip(texts, values, strict=True) if value not in options and text not in datasets
    ]
    assert (len(datasets), len(libraries)) == (2, 1)
    assert len(options) == 4
    folder = tmp_path / "config" / "ltxvideo"
    folder.mkdir(parents=True)
    for name in ("disney-black-and-white", "set-apart"):
        (tmp_path / "datasets" / name).mkdir(parents=True)
    (folder / "multidatabackend.json").write_text(datasets[0], encoding="utf-8")
    (folder / "user_prompt_library.json").write_text(libraries[0], encoding="utf-8")
    for extra in ({}, *options[1:]):
        (folder / "config.json").write_text(json.dumps({**options[0], **extra}), encoding="utf-8")
        examination = examine(["--env", "ltxvideo"], {}, tmp_path)
        assert not examination.has_errors, "\n".join(map(str, examination.problems))
    joined = [entry for text in datasets for entry in parse_json(text, "block").value]
    (folder / "multidatabackend.json").write_text(json.dumps(joined), encoding="utf-8")
    examination = examine(["--env", "ltxvideo"], {}, tmp_path)
    assert not examination.has_errors, "\n".join(map(str, examination.problems))
    assert examination.config is not None
    assert examination.config.measures_loss


@pytest.mark.parametrize(("language", "heading"), [(".md", "## Not built yet"), (".zh.md", "## 尚未实现")])
def test_refused_options_are_refused(language: str, heading: str) -> None:
    """Whoever builds a feature takes it off the list."""
    text = (REPOSITORY / f"docs/quickstart{language}").read_text(encoding="utf-8")
    section = text.split(f"\n{heading}")[1]
    listed = [name for name in INLINE.findall(section) if name in every_option()]
    assert len(listed) > 8
    facts = [(name, every_option()[name].facts) for name in listed]
    built = [name for name, fact in facts if not (fact.planned or fact.planned_values)]
    in_datasets = {
        name for table in dataset_tables().values() for name, spec in table.items() if spec.facts.planned_values
    }
    assert set(built) - in_datasets == set()
    assert all(f"simpletuner {command}" in section for command in PLANNED)


# --- links and languages ------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors GitHub makes for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"https?:|mailto:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("stem", TRANSLATED)
def test_both_languages_say_the_same(stem: str) -> None:
    """Same blocks but for comments, same headings by level, same links to pages, same options."""
    english, chinese = ((REPOSITORY / f"{stem}{end}").read_text(encoding="utf-8") for end in (".md", ".zh.md"))

    def blocks(text: str) -> list[str]:
        return [re.sub(r" +#.*$", "", body, flags=re.MULTILINE) for _, body in FENCE.findall(text)]

    def levels(text: str) -> list[int]:
        return [len(marks) for marks in re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)]

    assert blocks(english) == blocks(chinese)
    assert levels(english) == levels(chinese)
    assert option_like(english) == option_like(chinese)


def test_makefile_offers_what_is_promised() -> None:
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in ["setup", "fmt", "check", "test", "golden", "golden-record", "docs", "bench", "fresh", "clean"]:
        assert re.search(rf"^{target}:", text, re.MULTILINE), target
