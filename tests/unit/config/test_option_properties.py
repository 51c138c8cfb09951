"""Properties of every row of the option table, whatever is written: one outcome in each source, never a traceback."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simpletuner.config.resolve import Examination, examine
from simpletuner.config.table import OptionSpec, alias_table, dataset_tables, option_table
from simpletuner.config.values import UnreadableError, is_absent, read_value
from simpletuner.core.errors import Severity

TABLE = option_table()
BASE = {"model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 100, "validation_disable": True}
QUICK = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

# What is said of these depends on purpose on where they stand.
PLACE_MATTERS = {"data_backend_config", "delete_problematic_images", "delete_unwanted_images"}

# Letters that mean the same in JSON, TOML, an env file and on a command line.
PLAIN_TEXT = (
    st.text(st.sampled_from("abcdefgz0189_-./ äß漢"), min_size=1, max_size=12).map(lambda t: t.strip(" -")).filter(bool)
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, width=32),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    st.sampled_from(
        ["true", "no", "1e-4", "NaN", "inf", "-1", "0", "[1, 2", "{", "''", " ", "1_000", "٣", "0x10", "$HOME"]
    ),
)
JUNK = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.text("abc", min_size=1, max_size=3), SCALARS, max_size=2),
)


def written_values(spec: OptionSpec) -> st.SearchStrategy[Any]:
    """Values of the option's kind and range, as a JSON file holds them."""
    low = spec.minimum if spec.minimum is not None else 0
    high = spec.maximum if spec.maximum is not None else low + 1000
    by_kind: dict[str, st.SearchStrategy[Any]] = {
        "bool": st.booleans(),
        "int": st.integers(math.ceil(low) + spec.open_minimum, math.floor(high) - spec.open_maximum),
        "float": st.floats(low, high, exclude_min=spec.open_minimum, exclude_max=spec.open_maximum, width=64),
        "choice": st.sampled_from(spec.known_choices or ("x",)),
        "texts": st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=1, max_size=3),
        "numbers": st.lists(st.integers(1, 9).map(float), min_size=1, max_size=3),
    }
    return by_kind.get(spec.kind, PLAIN_TEXT)


def as_text(value: Any) -> str:
    """The value as a flag or a variable carries it."""
    return value if isinstance(value, str) else json.dumps(value)


def as_toml(value: Any) -> str:
    """The value in TOML, which writes these kinds as JSON does."""
    return json.dumps(value, ensure_ascii=False)


def outcome(examination: Examination, name: str) -> tuple[Any, list[str]]:
    """What became of one option: its value, and what is said of it apart from place and spelling."""
    said = [f"{problem.severity.value}: {problem.rule} {problem.fix}" for problem in examination.problems]
    said = sorted(re.sub(r"config/([abcd]/)?", "", text) for text in said)
    if examination.config is None:
        return None, said
    return examination.config.section(TABLE[name].section).model_dump(mode="json")[name], said


@settings(max_examples=60, **QUICK)
@given(data=st.data(), name=st.sampled_from(sorted(TABLE)))
def test_every_source_carries_every_option_alike(shared_desk, data: st.DataObject, name: str) -> None:
    spec = TABLE[name]
    if spec.kind in ("document", "block"):
        return
    value = data.draw(written_values(spec))
    folder = shared_desk.folder
    base = {key: item for key, item in BASE.items() if key != name}
    flags = [f"{key}={as_text(item)}" for key, item in base.items()]
    rows = {**base, name: value}
    shared_desk.write("config/a/config.json", json.dumps(rows))
    shared_desk.write("config/b/config.toml", "".join(f"{key} = {as_toml(item)}\n" for key, item in rows.items()))
    shared_desk.write(
        "config/c/config.env", "".join(f"{key.upper()}='{as_text(item)}'\n" for key, item in rows.items())
    )
    shared_desk.write("config/d/config.json", json.dumps(base))
    outcomes = {
        "json": examine(["--env", "a"], {}, folder),
        "toml": examine(["--env", "b"], {}, folder),
        "env file": examine(["--env", "c"], {}, folder),
        "variable": examine(["--env", "d"], {f"SIMPLETUNER_{name.upper()}": as_text(value)}, folder),
        "flag": examine(["--env", "d", f"--{name}={as_text(value)}"], {}, folder),
        "flag and word": examine(["--env", "d", f"--{name}", as_text(value)], {}, folder),
        "only flags": examine(["config_backend=cmd", f"--{name}={as_text(value)}", *flags], {}, folder),
    }
    found = {source: outcome(examination, name) for source, examination in outcomes.items()}
    # Where a file was looked for depends on the folder of the configuration.
    found = {
        source: (value, [text.partition("Looked at")[0] for text in said]) for source, (value, said) in found.items()
    }
    if name in PLACE_MATTERS:
        found = {source: (value, []) for source, (value, _) in found.items()}
    assert len({repr(item) for item in found.values()}) == 1, found
    arrived, said = found["json"]
    asked_for = read_value(spec, value)
    unbuilt = spec.facts.planned or spec.facts.refused
    if arrived is not None and not unbuilt and not any("is read as" in text for text in said):
        assert arrived == json.loads(json.dumps(asked_for)) or name == "lr_scheduler", (arrived, asked_for)


def can_be_read(spec: OptionSpec, raw: Any) -> bool:
    try:
        return is_absent(spec, raw) or read_value(spec, raw) is not ...
    except UnreadableError:
        return False


def keys_in(text: str) -> set[str]:
    """Known options and data set keys that a message names."""
    known = {*TABLE, *alias_table(), *(key for table in dataset_tables().values() for key in table)}
    return known.intersection(re.findall(r"[a-z][a-z0-9_]+", text))


@settings(max_examples=90, **QUICK)
@given(written=st.dictionaries(st.sampled_from(sorted(TABLE)), JUNK, min_size=8, max_size=8))
def test_any_value_is_taken_or_told_by_its_name(shared_desk, written: dict[str, Any]) -> None:
    """1,280 values, eight in one file: all that cannot be read are told at once."""
    shared_desk.write("config/e/config.json", json.dumps({**BASE, **written}))
    shared_desk.write(
        "config/e/multidatabackend.json", (shared_desk.folder / "config/multidatabackend.json").read_text()
    )
    examination = examine(["--env", "e"], {"HOME": "/nowhere"}, shared_desk.folder)
    errors = [str(problem) for problem in examination.problems if problem.severity is Severity.ERROR]
    assert bool(errors) == (examination.config is None)
    assert all(keys_in(error) for error in errors), errors
    for name, junk in written.items():
        if not can_be_read(TABLE[name], junk):
            assert any(f"config/e/config.json:1: {name} = " in error for error in errors), (junk, errors)


def misspell(name: str, at: int, kind: str) -> str:
    """The name with one slip of the finger."""
    at %= len(name)
    changed = {
        "drop": name[:at] + name[at + 1 :],
        "double": name[:at] + name[at] * 2 + name[at + 1 :],
        "swap": name[:at] + name[at : at + 2][::-1] + name[at + 2 :],
        "other": name[:at] + "q" + name[at + 1 :],
    }
    return changed[kind]


SLIPS = st.tuples(
    st.sampled_from(sorted(TABLE)), st.integers(0, 40), st.sampled_from(["drop", "double", "swap", "other"])
)
SELECTORS = {"env", "config", "example", "e"}


@settings(max_examples=40, **QUICK)
@given(slips=st.lists(SLIPS, min_size=10, max_size=10), by_flag=st.booleans())
def test_misspelt_names_are_told_with_the_right_ones(shared_desk, slips: list[tuple], by_flag: bool) -> None:
    """400 names, ten at once."""
    taken = {*TABLE, *alias_table(), *SELECTORS}
    wrong = {misspell(*slip): slip[0] for slip in slips}
    wrong = {written: name for written, name in wrong.items() if written.strip("_-") and written[0] != "_"}
    wrong = {written: name for written, name in wrong.items() if written not in taken}
    options = BASE if by_flag else {**BASE, **dict.fromkeys(wrong, 1)}
    shared_desk.write("config/f/config.json", json.dumps(options))
    flags = [f"{written}=1" for written in wrong] if by_flag else []
    examination = examine(["--env", "f", *flags], {}, shared_desk.folder)
    for written, name in wrong.items():
        told = [problem for problem in examination.problems if problem.what == f"unknown option '{written}'"]
        assert len(told) == 1
        assert told[0].severity is Severity.ERROR
        near = re.search(r"Did you mean '(\w+)'", told[0].fix)
        in_datasets = any(written in table for table in dataset_tables().values())
        assert in_datasets or len(name) < 6 or (near and near[1] in taken), told[0]


TABLES = {kind: table for kind, table in dataset_tables().items() if kind in ("dataset", "video")}
KEYS = [
    (kind, key) for kind, table in TABLES.items() for key in table if key not in ("id", "disabled", *dataset_tables())
]


@settings(max_examples=50, **QUICK)
@given(written=st.dictionaries(st.sampled_from(KEYS), JUNK, min_size=6, max_size=6))
def test_any_key_of_a_data_set_is_taken_or_told_by_its_name(shared_desk, written: dict[tuple[str, str], Any]) -> None:
    """480 values, six in one entry."""
    entry = {"id": "clips", "dataset_type": "video", "instance_data_dir": "clips"}
    entry |= {key: junk for (kind, key), junk in written.items() if kind == "dataset"}
    entry["video"] = {key: junk for (kind, key), junk in written.items() if kind == "video"}
    shared_desk.write("config/g/config.json", json.dumps(BASE))
    shared_desk.write("config/g/multidatabackend.json", json.dumps([entry]))
    examination = examine(["--env", "g"], {}, shared_desk.folder)
    errors = [str(problem) for problem in examination.problems if problem.severity is Severity.ERROR]
    assert bool(errors) == (examination.config is None)
    assert all(keys_in(error) for error in errors), errors
    if entry["dataset_type"] != "video":
        return  # another kind of entry, or none at all: its keys are not read
    for (kind, key), junk in written.items():
        if not can_be_read(TABLES[kind][key], junk):
            assert any(key in error for error in errors), (key, junk, errors)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '"text"', "null", "{", "\ufeff{}", "{a: }", "/* {", "[{", "\0", "{'a': 1,,}"]
)
def test_any_file_is_read_or_told(shared_desk, text: str) -> None:
    shared_desk.write("config/h/config.json", text)
    examination = examine(["--env", "h"], {}, shared_desk.folder)
    assert examination.config is None
    assert all(str(problem) for problem in examination.problems)
