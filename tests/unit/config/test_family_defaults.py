"""A model family's own defaults: weaker than anything a person writes, stronger than the general ones."""

from __future__ import annotations

import pytest

from simpletuner.config.catalogs.families import FAMILIES, family_defaults
from simpletuner.config.resolve import resolve_config
from simpletuner.config.surfaces.terminal import describe_option
from simpletuner.config.table import option_table
from simpletuner.config.values import read_value


def test_they_stand_between_the_general_default_and_every_file(desk) -> None:
    def guidance(*words: str, **environment: str) -> tuple[float, str]:
        config = resolve_config(words, environment, desk.folder)
        return config.validation.validation_guidance, config.origins["validation_guidance"]

    own = family_defaults("ltxvideo")["validation_guidance"]
    assert own != option_table()["validation_guidance"].default
    assert guidance() == (own, "default of ltxvideo")
    desk.write("config/config.env", "VALIDATION_GUIDANCE=6\n")
    assert guidance() == (6.0, "config/config.env:1")
    desk.add(validation_guidance=7)
    assert guidance() == (7.0, "config/config.json:6")
    assert guidance(SIMPLETUNER_VALIDATION_GUIDANCE="8")[0] == 8.0
    assert guidance("validation_guidance=9", SIMPLETUNER_VALIDATION_GUIDANCE="8") == (9.0, "command line")


def test_the_general_default_can_be_asked_for(desk) -> None:
    general = option_table()["aspect_bucket_alignment"].default
    config = resolve_config([f"aspect_bucket_alignment={general}"], {}, desk.folder)
    assert config.data.aspect_bucket_alignment == general
    assert config.datasets[0].aspect_bucket_alignment == general
    assert resolve_config([], {}, desk.folder).datasets[0].aspect_bucket_alignment == 32


def test_without_a_family_the_general_defaults_hold(desk) -> None:
    assert family_defaults(None) == family_defaults("other") == {}
    assert any("model_family" in text for text in desk.texts("model_family=other"))


def test_they_are_no_choice_of_the_person(desk) -> None:
    """Rules and notes speak of what was written; nobody wrote these."""
    assert desk.texts() == []


@pytest.mark.parametrize("family", list(FAMILIES))
def test_each_is_a_value_the_table_takes(family: str) -> None:
    for name, value in FAMILIES[family].defaults.items():
        assert read_value(option_table()[name], value) == value
        assert value != option_table()[name].default, f"{name}: says what the general default says"


def test_an_option_tells_both_defaults() -> None:
    text = "\n".join(describe_option(option_table()["validation_resolution"]))
    assert 'Default: "512x512"; ltxvideo: "768x512"' in text
