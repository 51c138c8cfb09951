"""Captions by each strategy, and why a file has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.captions import LARGEST_CAPTION_BYTES, find_captions
from simpletuner.data.sample import Unfit
from simpletuner.data.storage import LocalStorage

Dataset = Callable[..., ClipDataset]


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        (b"A cat.\n", ("A cat.",)),
        ("Ein Bär.".encode(), ("Ein Bär.",)),
        (b"\xef\xbb\xbfWith a mark.", ("With a mark.",)),
        (b"one\r\n\r\n  two  \rthree\n", ("one", "two", "three")),
        ("一只猫\u2028same line".encode(), ("一只猫\u2028same line",)),
    ],
)
def test_text_files(tmp_path: Path, clip_dataset: Dataset, content: bytes, captions: tuple[str, ...]) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert find_captions(LocalStorage(tmp_path), "a.mp4", clip_dataset(caption_strategy="textfile")) == captions


def test_lines_may_stay_together(tmp_path: Path, clip_dataset: Dataset) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    together = clip_dataset(caption_strategy="textfile", disable_multiline_split=True)
    assert find_captions(LocalStorage(tmp_path), "a.mp4", together) == ("one\ntwo",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "caption file 'a.b.txt' is missing"),
        (b"", "caption file 'a.b.txt' is empty"),
        (b" \r\n\t\n", "caption file 'a.b.txt' is empty"),
        (b"caf\xe9", "caption file 'a.b.txt' is not UTF-8 at byte 3; save it as UTF-8"),
        ("cat".encode("utf-16"), "caption file 'a.b.txt' is UTF-16, not UTF-8 (byte 0); save it as UTF-8"),
        (b"a\0b", "caption file 'a.b.txt' holds a zero byte at byte 1, it is not a text"),
        (b"a" * (LARGEST_CAPTION_BYTES + 1), "caption file 'a.b.txt' has more than 1048576 bytes"),
    ],
)
def test_no_usable_caption(tmp_path: Path, clip_dataset: Dataset, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "a.b.txt").write_bytes(content)
    with pytest.raises(Unfit) as caught:
        find_captions(LocalStorage(tmp_path), "a.b.mp4", clip_dataset(caption_strategy="textfile"))
    assert caught.value.reason == reason


def test_file_names(clip_dataset: Dataset) -> None:
    named = clip_dataset(caption_strategy="filename")
    assert find_captions(LocalStorage(Path("d")), "d/a_red_ball.mp4", named) == ("a red ball",)
    with pytest.raises(Unfit, match="gives no caption"):
        find_captions(LocalStorage(Path("d")), "d/___.mp4", named)


def test_one_prompt_for_all(clip_dataset: Dataset) -> None:
    same = clip_dataset(caption_strategy="instanceprompt", instance_prompt="a cat")
    assert find_captions(LocalStorage(Path("d")), "d/a.mp4", same) == ("a cat",)
    with pytest.raises(UserError, match="data set 'test' has no instance_prompt"):
        find_captions(LocalStorage(Path("d")), "d/a.mp4", clip_dataset(caption_strategy="instanceprompt"))
