"""Problems are told whole, all at once, in readable sentences."""

from __future__ import annotations

import pytest

from simpletuner.core.catalog import Catalog
from simpletuner.core.errors import ExitCode, Problem, UserError


def test_a_problem_reads_as_sentences_with_its_place() -> None:
    problem = Problem("lora_rank is -4", "It must be at least 1", "Write 16", "config.json:3: lora_rank")
    assert str(problem) == "config.json:3: lora_rank: lora_rank is -4. It must be at least 1. Write 16."


def test_many_problems_travel_together() -> None:
    error = UserError.of([Problem("one"), Problem("two")])
    assert str(error) == "one.\ntwo."
    assert [problem.what for problem in error.problems] == ["one", "two"]
    assert error.exit_code == ExitCode.USER == 2


def test_an_error_without_a_problem_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        UserError.of([])


class Row:
    target = "json:dumps"


def test_a_catalog_helps_with_misspelt_names_and_loads_late() -> None:
    catalog = Catalog("writer", {"compact": Row(), "pretty": Row()})
    assert list(catalog) == ["compact", "pretty"]
    assert catalog.load("compact")([1]) == "[1]"
    with pytest.raises(UserError, match=r"unknown writer 'compakt'.*compact, pretty.*Did you mean 'compact'"):
        catalog["compakt"]
