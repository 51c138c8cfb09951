"""docs/walk.md tells the truth: every file it names exists and defines what the walk says stands there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
WALK = REPOSITORY / "docs" / "walk.md"
LINK = re.compile(r"\[`([^`\]]+)`\]\(([^)#]+)\)(?:\s+→\s+`([\w.]+)`)?")
PLAIN_PATH = re.compile(r"(?<!\[)`(simpletuner/[\w/.]+)`")
# Rooms a clip passes through; a stop in each, or the walk has a hole.
ROOMS = {
    *("cli", "config", "core", "recipes", "events", "runtime"),
    *("data", "caching", "models", "maths", "objectives", "training", "validation"),
}


def read_stops(text: str) -> list[tuple[str, str, str]]:
    """(name as shown, link, symbol) of every stop."""
    return LINK.findall(text)


def defined_names(source: str) -> set[str]:
    """Top-level functions, classes and values of a module, and methods as "Class.method"."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


STOPS = read_stops(WALK.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("shown", "link", "symbol"), STOPS, ids=[f"{shown}-{symbol}" for shown, _, symbol in STOPS])
def test_stop_exists(shown: str, link: str, symbol: str) -> None:
    path = (WALK.parent / link).resolve()
    assert path.relative_to(REPOSITORY).as_posix() == shown, "the link leads somewhere else than it says"
    assert path.is_file()
    assert symbol, f"the stop at {shown} names nothing to read there"
    assert symbol in defined_names(path.read_text(encoding="utf-8")), f"{shown} defines no '{symbol}'"


def test_the_chinese_walk_makes_the_same_stops() -> None:
    assert read_stops(WALK.with_suffix(".zh.md").read_text(encoding="utf-8")) == STOPS


def test_paths_named_without_a_link_exist() -> None:
    named = PLAIN_PATH.findall(WALK.read_text(encoding="utf-8"))
    assert named
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


def test_walk_passes_through_every_room() -> None:
    visited = {Path(shown).parts[1] for shown, _, _ in STOPS}
    assert ROOMS - visited == set()


def test_every_stop_is_found_by_the_test() -> None:
    """A stop written in another form would not be checked: count the arrows."""
    text = WALK.read_text(encoding="utf-8")
    assert len([stop for stop in STOPS if stop[2]]) == text.count("→")


def test_checks_can_fail() -> None:
    source = "LIMIT: int = 3\ndef find(): ...\nclass A:\n    def load(self): ..."
    assert defined_names(source) == {"LIMIT", "find", "A", "A.load"}
    assert read_stops("[`a.py`](../a.py) →\n   `find`") == [("a.py", "../a.py", "find")]
    assert read_stops("[`a.py`](../a.py), then") == [("a.py", "../a.py", "")]
