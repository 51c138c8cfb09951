"""What an entry does to captions: filters, instance prompt, shuffled tags, in this order."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.config.caption_filters import parse_filter
from simpletuner.config.dataset import ClipDataset
from simpletuner.config.dataset_captions import CaptionShuffle
from simpletuner.data.caption_rules import change_captions, filter_caption, shuffle_tags
from simpletuner.data.captions import CaptionReader
from simpletuner.data.sample import Unfit
from simpletuner.data.storage import LocalStorage

Dataset = Callable[..., ClipDataset]


def filtered(caption: str, *items: str) -> str:
    return filter_caption(caption, [parse_filter(item) for item in items])


@pytest.mark.parametrize(
    ("caption", "items", "expected"),
    [
        ("a photo of a cat", ["a photo of "], "a cat"),
        ("a  photo  of", [" of"], "a photo"),
        ("clip 0123 of 45 cats", [r"\d+"], "clip of cats"),
        ("a cat", [r"\."], "a cat"),
        ("what? a cat", [r"what\? "], "a cat"),
        ("a cat", ["s/cat/dog/"], "a dog"),
        ("a cat", ["s/cat/dog"], "a dog"),
        ("a cat and a cat", ["s/cat/dog/"], "a dog and a dog"),
        ("a Cat", ["s/cat/dog/i"], "a dog"),
        ("a Cat", ["s/cat/dog/g"], "a Cat"),
        ("and/or", [r"s/and\/or/either/"], "either"),
        ("either", [r"s/either/and\/or/"], "and/or"),
        ("cat, red", [r"s/(\w+), (\w+)/\2 \1/"], "red cat"),
        ("cat", ["s/cat/dog/", "s/dog/bird/"], "bird"),  # in the order of the list
        ("cat", ["s/dog/bird/", "s/cat/dog/"], "dog"),
        ("miles/hour", ["s/hour"], "mile"),  # one slash after s: no replacement, but a text
        ("one\ntwo  three", [" two"], "one\ntwo three"),  # lines kept together stay lines
    ],
)
def test_filters(caption: str, items: list[str], expected: str) -> None:
    assert filtered(caption, *items) == expected


@pytest.mark.parametrize("item", ["s/a/b/", "s/a/b"])
def test_trap_30_the_documented_replacement_replaces(item: str) -> None:
    """Trap 30: "s/a/b/" must change a caption, with three slashes as documented and with two."""
    assert filtered("a cat", item) == "b cbt"


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("(a", "it is no regular expression (missing ), unterminated subpattern"),
        ("s/(a/b/", "it is no regular expression"),
        ("s/a/\\3/", "the replacement '\\\\3' is broken (invalid group reference 3"),
        ("s/a/b/c/d", "s/A/B/"),
        ("s/a/b/x", "s/A/B/"),
        ("s//b/", "nothing stands between the first two slashes"),
    ],
)
def test_broken_filters(item: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        parse_filter(item)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("s/ab(\\.*[+?)|1gi "), max_size=12), st.text(st.sampled_from("sab./ 1"), max_size=12))
def test_any_item_is_read_or_refused(item: str, caption: str) -> None:
    try:
        changed = filtered(caption, item)
    except ValueError:
        return
    assert changed == changed.strip()
    assert "  " not in changed


def test_order_is_filters_then_prompt_then_shuffle(clip_dataset: Dataset) -> None:
    entry = clip_dataset(
        prepend_instance_prompt=True, instance_prompt="a photo,", caption_shuffle=CaptionShuffle(enable=True)
    ).with_filters([parse_filter("a photo, ")])
    captions, emptied = change_captions(["a photo, red, ball", "a photo, "], entry, "a.mp4")
    assert captions[0] == "a photo, red, ball"  # the filter took the old one away, not the prompt put before it
    assert sorted(captions[1].split(", ")) == ["a photo", "ball", "red"]
    assert emptied == ("a photo, ",)


def test_each_prompt_goes_before_each_caption(clip_dataset: Dataset) -> None:
    entry = clip_dataset(prepend_instance_prompt=True, instance_prompt=["A", "B"])
    assert change_captions(["x", "y"], entry, "a.mp4")[0] == ("A x", "B x", "A y", "B y")
    alone = clip_dataset(prepend_instance_prompt=True, only_instance_prompt=True, instance_prompt="A")
    assert change_captions(["A"], alone, "a.mp4")[0] == ("A",)


def test_captions_that_the_filters_empty_are_reported(tmp_path: Path, clip_dataset: Dataset) -> None:
    for name in "ab":
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "a.txt").write_text("a cat\na dog")
    (tmp_path / "b.txt").write_text("a cat")
    storage = LocalStorage(tmp_path)
    entry = clip_dataset(tmp_path, caption_strategy="textfile").with_filters([parse_filter("a cat")])
    reader = CaptionReader(entry, storage, storage.list_files())
    assert reader.read("a.mp4") == ("a dog",)
    with pytest.raises(Unfit, match="caption_filter_list leaves nothing of the caption 'a cat'"):
        reader.read("b.mp4")
    assert reader.notes == (
        "captions of which caption_filter_list leaves nothing are not used; files concerned: 1 (a.mp4: 'a cat')",
    )


# Shuffling --------------------------------------------------------------------------------------

TAGS = "red, round, ball, small, wet, new"
FIRST = (
    "red, round, ball, small, wet, new",
    "round, ball, wet, new, small, red",
    "new, round, wet, red, small, ball",
    "wet, red, ball, small, round, new",
)


def test_shuffling_is_a_function_of_seed_and_path() -> None:
    rules = CaptionShuffle(enable=True, count=3, seed=7)
    first = shuffle_tags(TAGS, rules, "a.mp4/0")
    assert first == shuffle_tags(TAGS, rules, "a.mp4/0")
    assert first == FIRST  # the same on every machine and in every version of Python
    assert len(set(first)) == 4
    assert first != shuffle_tags(TAGS, rules, "b.mp4/0")
    assert first != shuffle_tags(TAGS, CaptionShuffle(enable=True, count=3, seed=8), "a.mp4/0")


@settings(max_examples=150, deadline=None)
@given(
    tags=st.lists(st.sampled_from(["a", "b", "cc", "d"]), min_size=1, max_size=6),
    count=st.integers(1, 8),
    fixed=st.integers(0, 4),
    original=st.booleans(),
    split_on=st.sampled_from(["comma", "space", "period"]),
)
def test_shuffling_loses_no_tag(tags: list[str], count: int, fixed: int, original: bool, split_on: str) -> None:
    joiner = {"comma": ", ", "space": " ", "period": ". "}[split_on]
    caption = joiner.join(tags) + ("." if split_on == "period" else "")
    rules = CaptionShuffle(enable=True, count=count, position_start=fixed, include_original=original, split_on=split_on)
    found = shuffle_tags(caption, rules, "a.mp4/0")
    assert 1 <= len(found) <= count + original
    assert len(set(found)) == len(found)
    cut = {"comma": ", ", "space": " ", "period": " "}[split_on]
    whole = caption.split(cut)
    for text in found:
        assert sorted(text.split(cut)) == sorted(whole)
        assert text.split(cut)[:fixed] == whole[:fixed]
    assert found[0] == caption or not original


@pytest.mark.parametrize(
    ("caption", "split_on", "parts"),
    [
        ("A cat. It is 3.5 m long! Really", "period", ["A cat.", "It is 3.5 m long!", "Really."]),
        ("猫坐着。狗跑。", "period", ["猫坐着。", "狗跑。"]),
        ("红，圆，球", "comma", ["红", "圆", "球"]),
    ],
)
def test_what_counts_as_a_tag(caption: str, split_on: str, parts: list[str]) -> None:
    rules = CaptionShuffle(enable=True, count=8, include_original=False, split_on=split_on)
    joiner = {"comma": ", ", "period": " "}[split_on]
    for text in shuffle_tags(caption, rules, "x"):
        assert text != joiner.join(parts)
        assert len(text) == len(joiner.join(parts))
        assert all(part in text for part in parts)


def test_too_few_tags_stay_as_they_are() -> None:
    rules = CaptionShuffle(enable=True, count=3, include_original=False)
    assert shuffle_tags("one tag only", rules, "x") == ("one tag only",)
    assert shuffle_tags("a, a, a", rules, "x") == ("a, a, a",)
    assert shuffle_tags("a, b", rules, "x") == ("b, a",)
