"""What is computed from the table: schema, terminal pages, presets and example files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simpletuner.config.documents import read_json
from simpletuner.config.presets import preset_folder, preset_names
from simpletuner.config.resolve import examine
from simpletuner.config.surfaces.json_schema import dataset_schema, options_schema
from simpletuner.config.surfaces.terminal import describe_option, find_option, list_options
from simpletuner.config.table import SECTIONS, dataset_tables, option_table
from simpletuner.core.errors import Severity


def test_schema_knows_every_option_and_is_json() -> None:
    schema = json.loads(json.dumps(options_schema()))
    assert set(schema["properties"]) == set(option_table())
    assert schema["properties"]["lora_rank"] == {
        "description": "Rank of the LoRA matrices; 4 makes small files.",
        "type": "integer",
        "minimum": 1.0,
        "maximum": 1024.0,
        "default": 16,
    }
    assert schema["properties"]["learning_rate"]["exclusiveMinimum"] == 0
    assert "nf4-bnb" in schema["properties"]["base_model_precision"]["enum"]
    assert "num_frames" in json.dumps(dataset_schema())


@pytest.mark.parametrize("name", [*option_table(), "video.num_frames", "instance_data_dir", "cache_dir_vae"])
def test_every_option_has_a_page(name: str) -> None:
    spec = find_option(name)
    assert spec is not None
    page = "\n".join(describe_option(spec, "4 (command line)"))
    assert spec.facts.help in page
    assert spec.facts.zh in page
    assert "Now: 4 (command line)" in page


def test_list_shows_what_works() -> None:
    short, long = "\n".join(list_options(everything=False)), "\n".join(list_options(everything=True))
    assert "lora_rank" in short
    assert "ramtorch" not in short
    assert all(name in long for name in option_table())


def test_sections_give_their_own_defaults() -> None:
    """A section built without arguments is what the table says."""
    for attribute, section in SECTIONS.items():
        for name, value in section().model_dump().items():
            assert option_table()[name].section == attribute
            assert option_table()[name].default == value


def test_both_languages_everywhere() -> None:
    for table in (option_table(), *dataset_tables().values()):
        for spec in table.values():
            assert spec.facts.help.endswith("."), spec.name
            assert any("\u4e00" <= character <= "\u9fff" for character in spec.facts.zh), spec.name


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_in_order(name: str, tmp_path: Path) -> None:
    folder = preset_folder(name)
    assert (folder / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
    work = tmp_path / "work"
    for entry in read_json(folder / "multidatabackend.json", "x").value:
        if "instance_data_dir" in entry:
            (work / entry["instance_data_dir"]).mkdir(parents=True)
    (work / "output/real-clips/model").mkdir(parents=True)  # its README has it made first
    examination = examine(["--example", name], {}, work)
    assert examination.config is not None, examination.problems
    assert all(notice.severity is Severity.NOTE for notice in examination.config.notices)
    assert examination.config.prompts


def test_example_files_in_config(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "datasets/disney-black-and-white").mkdir(parents=True)
    names = ["config.json", "multidatabackend.json", "user_prompt_library.json"]
    for name in names:
        (tmp_path / "config" / name).write_bytes((repository / "config" / f"{name}.example").read_bytes())
    examination = examine([], {}, tmp_path)
    assert examination.config is not None, examination.problems
    assert len(examination.config.prompts) == 3
