"""Validation options: what works, what is refused by name, what is told."""

from __future__ import annotations

from typing import Any

import pytest

from simpletuner.config.catalogs.prompt_libraries import PROMPT_LIBRARIES, read_built_in
from simpletuner.config.draft import Draft
from simpletuner.config.prompts import name_prompts, safe_nickname
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.sections.validation import ValidationSection, parse_sizes
from simpletuner.config.table import option_table
from simpletuner.config.validation_rules import VALIDATION_RULES
from simpletuner.core.errors import Severity


def findings(prompts: tuple[ValidationPrompt, ...] = (), **given: Any) -> list[tuple[str, str]]:
    values = {name: spec.default for name, spec in option_table().items()} | given
    draft = Draft(values, frozenset(given), dict.fromkeys(given, "here"), prompts)
    return [(found.severity.value, found.what) for rule in VALIDATION_RULES for found in rule.check(draft)]


@pytest.mark.parametrize("name", list(PROMPT_LIBRARIES))
def test_built_in_prompts_are_long_and_fit_into_128_tokens(name: str) -> None:
    prompts = read_built_in(name)
    assert 5 <= len(prompts) <= 8
    for nickname, prompt in prompts.items():
        assert safe_nickname(nickname) == nickname
        # T5 makes about 1.25 tokens of a word of such texts; 128 are what the first releases look at.
        assert 75 <= len(prompt.split()) <= 95, nickname
        assert prompt.isascii(), nickname
        assert prompt.endswith(".")


def test_nicknames_of_all_sets_are_unique() -> None:
    names = [nickname for name in PROMPT_LIBRARIES for nickname in read_built_in(name)]
    assert len(set(names)) == len(names)


def test_without_a_set_there_is_no_built_in_prompt() -> None:
    assert read_built_in("none") == {}


@pytest.mark.parametrize(
    ("nickname", "safe"),
    [
        ("a cat!", "a_cat"),
        ("../../etc/passwd", "etc_passwd"),
        ("北京 夜", "北京_夜"),
        ("", "prompt"),
        ("a" * 200, "a" * 80),
    ],
)
def test_nicknames_become_parts_of_file_names(nickname: str, safe: str) -> None:
    assert safe_nickname(nickname) == safe


def test_equal_nicknames_are_told_apart() -> None:
    prompts = [ValidationPrompt("a cat", "x"), ValidationPrompt("A_cat", "y")]
    assert [one.nickname for one in name_prompts(None, prompts)] == ["a_cat", "A_cat-2"]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("768x512", [(768, 512)]), ("640", [(640, 640)]), ("1", [(1000, 1000)]), ("0.5, 64", [(707, 707), (64, 64)])],
)
def test_sizes(text: str, sizes: list[tuple[int, int]]) -> None:
    assert parse_sizes(text) == sizes
    assert all(side % 32 == 0 for size in ValidationSection(validation_resolution=text).resolutions for side in size)


@pytest.mark.parametrize("text", ["x512", "0", "-1", "16x16", "99999", "768.5x512", "nan", "inf", ""])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        parse_sizes(text)
    assert findings(validation_resolution=text)[0][0] == "error"


@pytest.mark.parametrize(
    ("given", "severity", "told"),
    [
        ({"validation_preview_decoder": "tae.pth"}, "error", 'validation_preview_decoder = "tae.pth"'),
        ({"validation_preview_decoder": "linea"}, "error", "validation_preview_decoder"),
        ({"validation_preview": True, "validation_preview_steps": 50}, "warning", "there is no preview"),
        ({"validation_preview": True, "validation_disable": True}, "note", "no effect with validation_disable"),
        ({"validation_randomize": True}, "note", "start from validation_seed"),
        ({"validation_stitch_input_location": "left"}, "note", "no effect"),
        ({"validate_after_step": 500, "max_train_steps": 100}, "note", "only the end is validated"),
    ],
)
def test_what_would_not_work_is_told(given: dict[str, Any], severity: str, told: str) -> None:
    prompts = (ValidationPrompt("cat", "a long prompt " * 10),)
    assert any(found == severity and told in what for found, what in findings(prompts, **given))


@pytest.mark.parametrize(
    "given",
    [
        {"validation_preview": True, "validation_preview_steps": 5, "validation_preview_decoder": "linear"},
        {"validation_preview_decoder": "models/tae.safetensors"},
        {"validation_randomize": True, "disable_benchmark": True},
        {"validation_stitch_input_location": "left", "validation_using_datasets": True},
    ],
)
def test_what_works_is_passed_in_silence(given: dict[str, Any]) -> None:
    assert findings((ValidationPrompt("cat", "a long prompt " * 10),), **given) == []


def test_pictures_of_data_sets_are_prompts_enough() -> None:
    assert findings()[0] == (Severity.WARNING.value, "there is no validation prompt, so no videos will be generated")
    assert findings(validation_using_datasets=True) == []
