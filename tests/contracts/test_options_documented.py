"""`docs/options.md` is what the table says, and the guide's and the reference's names are all in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from simpletuner.config.catalogs.families import family_defaults
from simpletuner.config.surfaces.docs import options_page
from simpletuner.config.surfaces.optimizer_page import optimizers_page
from simpletuner.config.table import alias_table, dataset_tables, option_table

REPOSITORY = Path(__file__).resolve().parents[2]


def test_page_is_current() -> None:
    written = (REPOSITORY / "docs/options.md").read_text(encoding="utf-8")
    assert written == options_page(), "run `make docs`"


def test_page_of_optimizers_is_current() -> None:
    written = (REPOSITORY / "docs/optimizers.md").read_text(encoding="utf-8")
    assert written == optimizers_page(), "run `make docs`"


def test_every_deviation_in_the_record_is_true() -> None:
    """The defaults which docs/decisions/0002-options.md states are those of the table."""
    text = (REPOSITORY / "docs/decisions/0002-options.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", text, flags=re.MULTILINE)
    assert len(rows) > 20
    for name, here in rows:
        spec = option_table().get(name)
        if spec is None or spec.default is None or not re.fullmatch(r"`?[\w.x-]+`?", here.strip()):
            continue
        word = here.strip().strip("`")
        if word in ("always", "wins"):
            continue
        default = family_defaults("ltxvideo").get(name, spec.default)
        value = float(word) if isinstance(default, float) else type(default)(word)
        assert value == default, name


# Names on a starred line of the reference that are values, files, variables or other families' options.
NO_OPTIONS = {
    "sayakpaul", "none", "simpletuner",
}  # fmt: skip


def test_starred_names_of_the_reference_are_rows(guide_files: Path) -> None:
    reference = (guide_files.parent / "options.md").read_text(encoding="utf-8")
    starred = set(re.findall(r"^\| `([a-z][a-z0-9_.]+)` ★", reference, flags=re.MULTILINE)) - NO_OPTIONS
    assert len(starred) > 60
    known = {*option_table(), *alias_table(), *(key for table in dataset_tables().values() for key in table)}
    known |= {f"video.{key}" for key in dataset_tables()["video"]}
    levels = set(option_table()["base_model_precision"].facts.planned_values)
    assert sorted(starred - known - levels) == []


@pytest.mark.parametrize("file", ["config.json", "fragment_int8_quanto.jsonc", "fragment_preview.json"])
def test_names_of_the_guide_carry_the_star(guide_files: Path, file: str) -> None:
    names = re.findall(r'^\s*"(\w+)":', (guide_files / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert names
    assert [name for name in names if not option_table()[name].facts.guide] == []
