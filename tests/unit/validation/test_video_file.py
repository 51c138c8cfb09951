"""Written videos have the right frames, rate, size and colours."""

from __future__ import annotations

import errno
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from simpletuner.core.errors import UserError
from simpletuner.validation.comparison import compare_videos, draw_grid, spread
from simpletuner.validation.video_file import (
    count_frames,
    read_frames,
    read_recipe,
    read_video,
    write_still,
    write_video,
)


@pytest.fixture
def frames() -> np.ndarray:
    """Three colour bars; the picture gets darker with every frame."""
    video = np.zeros((17, 64, 96, 3), np.uint8)
    for bar, colour in enumerate(((200, 30, 40), (20, 180, 60), (30, 60, 220))):
        video[:, :, bar * 32 : bar * 32 + 32] = colour
    return (video * np.linspace(1, 0.5, 17)[:, None, None, None]).astype(np.uint8)


@pytest.mark.parametrize(
    ("rate", "stored"),
    [
        (25.0, Fraction(25)),
        (8.0, Fraction(8)),
        (24000 / 1001, Fraction(24000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
    ],
)
def test_frames_rate_and_colours_survive(rate: float, stored: Fraction, frames: np.ndarray, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", frames, rate)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == stored
        assert (stream.width, stream.height) == (96, 64)
        times = [frame.time for frame in container.decode(stream)]
    assert times == pytest.approx([number / rate for number in range(17)], abs=1e-4)
    read, read_rate = read_video(tmp_path / "v.mp4")
    assert read.shape == frames.shape
    assert read_rate == pytest.approx(rate)
    inside = [x for bar in range(3) for x in range(bar * 32 + 6, bar * 32 + 26)]  # away from the blurred edges
    assert np.abs(read.astype(int) - frames)[:, :, inside].max() <= 8


def test_equal_frames_give_equal_files(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(60, 200, (9, 64, 96, 3), dtype=np.uint8)
    files = set()
    for number in range(8):
        write_video(tmp_path / f"{number}.mp4", noise, 25.0)
        files.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(files) == 1


def test_one_frame_is_a_png(frames: np.ndarray, tmp_path: Path) -> None:
    write_video(tmp_path / "still.png", frames[:1], 25.0)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "still.png")), frames[0])
    assert np.array_equal(read_video(tmp_path / "still.png")[0], frames[:1])


@pytest.mark.parametrize(
    ("shape", "kind", "rate"),
    [((9, 64, 64), np.uint8, 25), ((9, 64, 64, 3), np.float32, 25), ((9, 63, 64, 3), np.uint8, 25),
     ((9, 64, 64, 3), np.uint8, 0), ((0, 64, 64, 3), np.uint8, 25)],
)  # fmt: skip
def test_what_is_no_video_is_refused(shape: tuple[int, ...], kind: type, rate: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs"):
        write_video(tmp_path / "v.mp4", np.zeros(shape, kind), rate)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_half_video(frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="no space left"):
        write_video(tmp_path / "v.mp4", frames, 25.0)
    assert list(tmp_path.iterdir()) == []


def test_the_encoder_tells_a_full_device() -> None:
    from simpletuner.validation.video_file import _encode

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(OSError) as caught:
        _encode(Path("/dev/full"), np.zeros((9, 64, 64, 3), np.uint8), 25.0)
    assert caught.value.errno == errno.ENOSPC


def test_a_file_without_video_is_told(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="holds no video"):
        read_video(tmp_path / "v.mp4")
    with pytest.raises(FileNotFoundError):
        read_video(tmp_path / "missing.mp4")


def test_the_comparison_shows_base_above_adapter(tmp_path: Path) -> None:
    dark, bright = np.full((9, 64, 96, 3), 40, np.uint8), np.full((9, 64, 96, 3), 210, np.uint8)
    write_video(tmp_path / "base.mp4", dark, 25.0)
    write_video(tmp_path / "step.mp4", bright, 25.0)
    compare_videos(tmp_path / "base.mp4", tmp_path / "step.mp4", tmp_path / "strip.png", label="step 5", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "strip.png"))
    assert sheet.shape[1] == 2 * 16 + 3 * 224 + 2 * 6
    column = sheet[:, 100].mean(axis=1)
    rows = [int(np.median(np.flatnonzero(np.abs(column - level) < 4))) for level in (40, 210)]
    assert rows[0] < rows[1]


def test_moments_are_spread_evenly() -> None:
    assert spread(121, 6) == [0, 24, 48, 72, 96, 120]
    assert spread(3, 6) == [0, 1, 2]
    assert spread(1, 6) == [0]


def numbered(count: int) -> np.ndarray:
    """Frames whose brightness tells their number."""
    return np.stack([np.full((64, 64, 3), 20 + 10 * number, np.uint8) for number in range(count)])


def test_videos_of_different_length_are_compared_where_both_are(tmp_path: Path) -> None:
    write_video(tmp_path / "base.mp4", numbered(9), 25.0)
    write_video(tmp_path / "step.mp4", numbered(17), 25.0)
    compare_videos(tmp_path / "base.mp4", tmp_path / "step.mp4", tmp_path / "strip.png", label="x", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "strip.png")).astype(int)
    last = sheet[:, 16 + 224 + 6 + 100, 0]
    assert np.count_nonzero(np.abs(last - 100) < 4) > 400  # frame 8 of both, 224 px high each


def test_single_frames_are_read_without_the_others(tmp_path: Path) -> None:
    frames = numbered(9)
    write_video(tmp_path / "v.mp4", frames, 12.5)
    assert count_frames(tmp_path / "v.mp4") == 9
    some, rate = read_frames(tmp_path / "v.mp4", [0, 3, 8])
    assert rate == 12.5
    assert np.abs(some.astype(int) - frames[[0, 3, 8]]).max() <= 3
    with pytest.raises(ValueError, match="fewer than 10"):
        read_frames(tmp_path / "v.mp4", [9])
    write_still(tmp_path / "s.png", frames[0])
    assert count_frames(tmp_path / "s.png") == 1
    assert read_frames(tmp_path / "s.png", [0])[0].shape == (1, 64, 64, 3)


def test_the_grid_has_a_row_per_step_and_leaves_gaps(tmp_path: Path) -> None:
    for level in (50, 150):
        write_still(tmp_path / f"{level}.png", np.full((32, 64, 3), level, np.uint8))
    (tmp_path / "damaged.png").write_bytes(b"x")
    rows = [("base model", [tmp_path / "50.png", None]), ("step 5", [tmp_path / "damaged.png", tmp_path / "150.png"])]
    draw_grid(["a cat 64x32", "a very long nickname that does not fit " * 3], rows, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    assert sheet.shape[1] == 2 * 16 + 2 * 224 + 6
    left, right = sheet[:, 100, 0], sheet[:, 16 + 224 + 6 + 100, 0]
    assert np.count_nonzero(left == 50) == np.count_nonzero(right == 150) == 112
    assert np.flatnonzero(left == 50).max() < np.flatnonzero(right == 150).min()
    assert 150 not in left


def test_of_many_steps_the_first_and_the_last_are_shown(tmp_path: Path) -> None:
    for number in range(30):
        write_still(tmp_path / f"{number}.png", np.full((32, 32, 3), 8 * number, np.uint8))
    rows = [(f"step {number}", [tmp_path / f"{number}.png"]) for number in range(30)]
    draw_grid(["cat"], rows, tmp_path / "grid.png")
    column = np.asarray(Image.open(tmp_path / "grid.png"))[:, 200, 0]
    shown = [number for number in range(30) if np.count_nonzero(column == 8 * number) > 200]
    assert (len(shown), shown[0], shown[-1]) == (12, 0, 29)


@pytest.mark.parametrize("count", [1, 9])
def test_a_file_says_how_it_was_made(tmp_path: Path, count: int) -> None:
    recipe = {"prompt": 'a "cat" in 北京\n\\ and 100 %', "seed": 7, "guidance": 3.5, "adapters": [{"strength": 0.5}]}
    frames = np.zeros((count, 32, 32, 3), np.uint8)
    path = tmp_path / ("a.png" if count == 1 else "a.mp4")
    write_video(path, frames, 12.0, recipe)
    assert read_recipe(path) == recipe
    write_video(path, frames, 12.0)
    assert read_recipe(path) == {}
