"""Files as people write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.config.documents import fill_environment, parse_json, read_env, read_json, read_toml
from simpletuner.core.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, // remark\n "b": [1, 2,],}', {"a": 1, "b": [1, 2]}),
        ('/* remark */ {"--a": "x"}', {"--a": "x"}),
        ('  "a": 1,\n  "b": "no braces"\n', {"a": 1, "b": "no braces"}),
        ('"a": 1, // a remark at the end', {"a": 1}),
        ("{'single': 'quotes', bare: true}", {"single": "quotes", "bare": True}),
        ('{"rate": 1e-4, "low": -3, "none": null}', {"rate": 1e-4, "low": -3, "none": None}),
        ('{"url": "http://x/y"}', {"url": "http://x/y"}),
        ("[]", []),
    ],
)
def test_tolerant_json(text: str, expected: object) -> None:
    assert parse_json(text, "x.json").value == expected


def test_every_key_and_item_has_its_line() -> None:
    document = parse_json(
        '[\n  {\n    "id": "a",\n    "video": {\n      "num_frames": 25}\n  },\n  {"id": "b"}\n]', "x.json"
    )
    assert document.place(0, "video", "num_frames") == "x.json:5"
    assert document.place(1) == "x.json:7"
    assert document.place(9) == "x.json"


# The tolerant parser leaves escaped pairs of surrogates apart, so that its texts end at 0xffff.
TEXTS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=4)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(TEXTS, parts, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(TREES, st.sampled_from([None, 0, 2]), st.booleans())
def test_plain_json_is_read_as_the_tolerant_parser_reads_it(tree: object, indent: int | None, plain: bool) -> None:
    """A remark behind it sends the same text to the other parser: values and lines must agree."""
    text = json.dumps(tree, indent=indent, ensure_ascii=plain)
    quick, slow = parse_json(text, "x.json"), parse_json(text + "  // remark", "x.json")
    assert quick.value == slow.value == tree
    assert quick.lines == slow.lines


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path, "a.json").value == {"a": 1}


@pytest.mark.parametrize(
    ("text", "place", "part"),
    [
        ('{"a": 1\n "b": 2}', "x.json:2:2", "a comma or }"),
        ('{"a": }', "x.json:1:7", "value"),
        ('{"a": [1, 2}', "x.json:1:12", "] or a comma"),
        ('"a": 1,\n"b" 2', "x.json:2:5", "a colon"),
        ('{"a": "never closed}', "x.json:1:7", "comma"),
        ("", "x.json:", "empty"),
        ('{"a": 1,\n\n"a": 2}', "x.json:3", "given twice, on lines 1 and 3"),
        ('{"x": {"a": 1, "a": 2}}', "x.json:1", "given twice"),
        ("[" * 3000 + "]" * 3000, "", "nested too deeply"),
    ],
)
def test_faults_say_where(text: str, place: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_json(text, "x.json")
    assert place in str(caught.value)
    assert part in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "wide.json").write_text("{}", encoding="utf-16")
    with pytest.raises(UserError, match="the file is UTF-16, and not UTF-8 text"):
        read_json(tmp_path / "wide.json", "wide.json")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(UserError, match="not UTF-8"):
        read_json(tmp_path / "latin.json", "latin.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "absent.json", "absent.json")


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('model_type = "lora"\n# remark\nlora_rank = 4\n', encoding="utf-8")
    document = read_toml(path, "c.toml")
    assert document.value == {"model_type": "lora", "lora_rank": 4}
    assert document.place("lora_rank") == "c.toml:3"
    path.write_text('a = "x"\nb = \n', encoding="utf-8")
    with pytest.raises(UserError, match=r"c\.toml:2"):
        read_toml(path, "c.toml")


def test_env_file_like_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "config.env"
    path.write_text(
        "# remark\nexport MODEL_TYPE='lora'\nOUTPUT_DIR=\"$HOME/out\" # remark\nA=1\nA+=2\nB=${A}x\n", encoding="utf-8"
    )
    values, lines = read_env(path, "config.env", {"HOME": "/home/me"})
    assert values == {"MODEL_TYPE": "lora", "OUTPUT_DIR": "/home/me/out", "A": "1 2", "B": "1 2x"}
    assert lines["A"] == 5
    path.write_text("this is no assignment\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.env:1.*cannot be read"):
        read_env(path, "config.env", {})


def test_environment_references() -> None:
    filled = fill_environment({"a": ["{env:X}/y"], "b": 3}, {"X": "here"}, "place")
    assert filled == {"a": ["here/y"], "b": 3}
    with pytest.raises(UserError, match=r"\{env:NOPE\}.*not set"):
        fill_environment("{env:NOPE}", {}, "place")
