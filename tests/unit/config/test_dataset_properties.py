"""Whatever a data set file holds: no traceback, and each error names the key it is about."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simpletuner.config.dataset import BLOCKS
from simpletuner.config.documents import is_comment
from simpletuner.config.resolve import Examination
from simpletuner.config.table import dataset_tables
from simpletuner.core.errors import Severity

TABLES = dataset_tables()
QUICK = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

WORDS = st.sampled_from([
    "", " ", "true", "false", "none", "nan", "-inf", "1e400", "0x10", "480", "-1", "0.5", "{env:NOWHERE}", "{id}", "{",
    "video", "image", "text_embeds", "eval", "local", "aws", "csv", "huggingface", "parquet", "json", "closest", "face",
    "../..", "/", "\x00", "a\nb", "~nobody/x", "clips", "x" * 300, "漢字", "(", "s/(/", "texts",
])  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False), WORDS,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)  # fmt: skip
NAMES = st.text(st.sampled_from("abcdefgh_-. /é"), min_size=1, max_size=10)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
KNOWN = st.sampled_from([
    *((kind, key) for kind in ("dataset", "text_embeds") for key in TABLES[kind]),
    *((block, key) for block in BLOCKS for key in TABLES[block]),
])  # fmt: skip
ENTRIES = st.dictionaries(st.sampled_from(["id", "dataset_type", "type", "video"]), JUNK)
UNKNOWN = st.tuples(st.sampled_from(["dataset", "text_embeds", *BLOCKS]), NAMES)


def entries(kind: str, key: str, value: Any) -> list[dict[str, Any]]:
    """A file that is in order but for one key."""
    clips: dict[str, Any] = {"id": "clips", "dataset_type": "video", "instance_data_dir": "clips"}
    texts: dict[str, Any] = {"id": "texts", "dataset_type": "text_embeds", "cache_dir": "texts"}
    if kind == "dataset":
        clips[key] = value
    elif kind == "text_embeds":
        texts[key] = value
    else:
        clips[kind] = {key: value}
    return [clips, texts]


def look(desk: Any, content: Any) -> Examination:
    desk.write("config/multidatabackend.json", json.dumps(content))
    return desk.examine()  # type: ignore[no-any-return]


def errors(examination: Examination) -> list[str]:
    return [str(problem) for problem in examination.problems if problem.severity is Severity.ERROR]


@settings(max_examples=200, **QUICK)
@given(place=KNOWN, value=JUNK)
@example(place=("text_embeds", "caption_filter_list"), value=["s/a/\\9/"])
@example(place=("dataset", "instance_data_dir"), value="x" * 5000)
@example(place=("dataset", "instance_data_dir"), value="a\x00b")
@example(place=("dataset", "crop_aspect_buckets"), value=[{"aspect": 1}])
def test_any_value_of_any_key(dataset_desk, place: tuple[str, str], value: Any) -> None:
    kind, key = place
    examination = look(dataset_desk, entries(kind, key, value))
    told = errors(examination)
    assert (examination.config is None) == bool(told)
    if not told or (key == "dataset_type" and (value is None or isinstance(value, str))):
        return  # another kind of entry has other keys
    assert any(key in text for text in told), told


@settings(max_examples=100, **QUICK)
@given(place=UNKNOWN, value=JUNK)
def test_any_unknown_key(dataset_desk, place: tuple[str, str], value: Any) -> None:
    kind, key = place
    name = key.strip().lstrip("-")
    if name in TABLES[kind] or is_comment(key):
        return
    told = errors(look(dataset_desk, entries(kind, key, value)))
    shown = key if kind in ("dataset", "text_embeds") else f"{kind}.{key}"
    if "{env:" in json.dumps(value):
        assert any(key in text for text in told)
    else:
        assert any(f"unknown key '{shown}'" in text for text in told), told


@settings(max_examples=60, **QUICK)
@given(content=st.lists(JUNK | ENTRIES, max_size=4))
def test_any_content(dataset_desk, content: list[Any]) -> None:
    """Nothing of this can be trained, and that is said in a finding."""
    assert errors(look(dataset_desk, content))


@settings(max_examples=60, **QUICK)
@given(text=st.text(st.sampled_from("[]{}\":,'\\/*#\n abc01.-e"), max_size=40))
def test_any_text(dataset_desk, text: str) -> None:
    dataset_desk.write("config/multidatabackend.json", text)
    assert errors(dataset_desk.examine())
