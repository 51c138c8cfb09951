"""Findings about planned clips: each told once, with its numbers, and none about sound data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from simpletuner.core.errors import Severity
from simpletuner.data.contact_sheet import NO_FONT
from simpletuner.data.findings import Finding, estimated_tokens, find_all
from simpletuner.data.fonts import find_font
from simpletuner.data.looks import Looks
from simpletuner.data.quality import Look
from simpletuner.data.sample import LeftOut, Sample
from simpletuner.data.storage import LocalStorage

Planned = Callable[..., Sample]
CAPTIONS = (
    "A grey cat walks slowly over a wooden floor towards the camera.",
    "Waves roll onto a beach of black sand under a cloudy sky.",
    "A train leaves the station while people wave from the platform.",
)


@pytest.fixture
def samples(planned: Planned) -> list[Sample]:
    return [planned(f"{number}.mp4", captions=(caption,)) for number, caption in enumerate(CAPTIONS)]


def find(
    found: Sequence[Sample], left_out: Sequence[LeftOut] = (), looks: Looks | None = None, **more: object
) -> list[Finding]:
    settings = {"token_length": 128, "batch_size": 1, "trained": found} | more
    storages = {"test": LocalStorage(__file__)}  # type: ignore[arg-type]
    return list(find_all(found, left_out=left_out, storages=storages, looks=looks or Looks(), **settings))  # type: ignore[arg-type]


def test_sound_data_gives_nothing(samples: list[Sample]) -> None:
    assert find(samples) == []


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        ("a cat", "short caption"),
        ("word " * 200, "long caption"),
        ("一只灰色的猫慢慢走过木地板", "foreign caption"),
        ("Серая кошка медленно идёт по полу", "foreign caption"),
        ("A café in Zürich, naïve façades pass by slowly", None),
        ("A sign with the letters 咖啡 hangs above the door of a small shop", None),
    ],
)
def test_captions(samples: list[Sample], caption: str, kind: str | None) -> None:
    found = find([replace(samples[0], captions=(caption,)), *samples[1:]])
    assert [item.kind for item in found] == ([kind] if kind else [])
    assert all(item.path == "0.mp4" and item.fix and item.severity is Severity.WARNING for item in found)


def test_all_windows_of_a_file_are_told_of_once(samples: list[Sample]) -> None:
    windows = [replace(samples[0], captions=("a cat",), part=part) for part in range(3)]
    assert [item.kind for item in find([*windows, *samples[1:]])] == ["short caption"]


def test_a_caption_of_some_files_but_not_of_all(samples: list[Sample]) -> None:
    twins = [replace(samples[0], path="a.mp4"), replace(samples[0], path="b.mp4")]
    (told,) = find([*twins, samples[1]])
    assert (told.kind, told.others, told.severity) == ("repeated caption", ("test/b.mp4",), Severity.NOTE)
    assert find(twins) == []  # one prompt for all is a choice


def test_files_left_out(samples: list[Sample]) -> None:
    found = find(
        samples,
        [
            LeftOut("test", "cut.mp4", "truncated", damaged=True),
            LeftOut("test", "new\nline.mp4", "too short: 5 frames, needs 9"),
            LeftOut("test", "0.mp4", "too short", part="1.00 to 1.20 s"),
        ],
    )
    assert [(item.kind, item.severity.value, item.shown_path) for item in found] == [
        ("damaged", "warning", "test/cut.mp4"),
        ("left out", "warning", r"test/new\nline.mp4"),
        ("left out", "note", "test/0.mp4"),
    ]


def test_geometry_and_rates(samples: list[Sample]) -> None:
    first = samples[0]
    combed = replace(first, info=replace(first.info, interlaced=True, variable_rate=True))
    small = replace(samples[1], info=replace(first.info, width=32, height=32))
    fast = replace(samples[2], frames=replace(first.frames, frame_rate=50.0))
    found = {item.kind: item for item in find([combed, small, fast])}
    assert set(found) == {"interlaced", "variable rate", "enlarged", "frame rates"}
    assert found["enlarged"].what == "enlarged 2.00×, from 32x32 to 64x64@9"
    assert "25 fps (2), 50 fps (1)" in found["frame rates"].what


def test_buckets(planned: Planned, samples: list[Sample]) -> None:
    lone = planned("lone.mp4", width=96, captions=("A dog runs along the shore in the evening sun.",))
    (told,) = find([*samples, lone])
    assert (told.kind, told.others) == ("small bucket", ("test/lone.mp4",))
    (told,) = find([*samples, lone], trained=samples)
    assert (told.kind, told.severity) == ("bucket left out", Severity.WARNING)
    assert "96x64@9" in told.what


def test_pictures_and_duplicates(samples: list[Sample]) -> None:
    generator = np.random.default_rng(0)

    def look(thumbs: np.ndarray, motion: float) -> Look:
        return Look(thumbs, (200.0,) * len(thumbs), (200.0,) * len(thumbs), motion, 1.0, 0)

    one, other = (generator.integers(0, 255, (13, 8, 9, 3), dtype=np.uint8) for _ in range(2))
    seen = {samples[0].name: look(one, 30), samples[1].name: look(other, 0.5), samples[2].name: look(one, 30)}
    found = find(samples, looks=Looks(seen))
    assert [(item.kind, item.sample, item.others) for item in found] == [
        ("near duplicate", "test/0.mp4", ("test/2.mp4",)),
        ("static", "test/1.mp4", ()),
    ]


def test_token_estimates() -> None:
    assert estimated_tokens("") == 1
    assert 15 <= estimated_tokens(CAPTIONS[0]) <= 20
    assert estimated_tokens("一只灰色的猫") >= 6


def test_fonts_have_the_letters_or_say_so() -> None:
    assert find_font("plain words", 13) is not None
    assert find_font("\U000f0000", 13) is None
    assert find_font(NO_FONT, 13) is not None
