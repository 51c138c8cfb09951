"""Windows of a clip, true shapes and colours, and damage told; codecs and rates are in `test_data_decode_exact.py`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simpletuner.config.dataset import ClipDataset
from simpletuner.data.decode import decode_frames, decode_sample, frames_to_pixels
from simpletuner.data.geometry import plan_crop, plan_frames
from simpletuner.data.probe import probe
from simpletuner.data.sample import CropPlan, FramePlan, Sample, Unfit, UnusableMedia
from simpletuner.data.storage import LocalStorage

NTSC = Fraction(30000, 1001)
Write = Callable[..., Path]
Read = Callable[[np.ndarray], list[int]]
Dataset = Callable[..., ClipDataset]


def sample_of(path: Path, dataset: ClipDataset) -> Sample:
    info = probe(LocalStorage(path.parent), path.name)
    name = f"{dataset.id}/{path.name}"
    return Sample(dataset.id, path.name, info, plan_frames(info, dataset, 8, name),
                  plan_crop(info.width, info.height, dataset, 32, name), ("a",), 1)  # fmt: skip


def window(sample: Sample, start: int, count: int) -> Sample:
    """The same sample with another window, given in frames of its own rate."""
    rate = sample.info.frame_rate
    return Sample(
        sample.dataset, sample.path, sample.info, FramePlan(count, rate, start / rate), sample.crop, ("a",), 1
    )


def test_halving_the_rate_takes_every_second_frame(
    tmp_path: Path, write_clip: Write, read_numbers: Read, clip_dataset: Dataset
) -> None:
    """A 50 fps clip trained at 25 keeps its speed."""
    path = write_clip(tmp_path / "a.mp4", frames=60, rate=50)
    sample = sample_of(path, clip_dataset(video={"num_frames": 25, "frame_rate": 25.0}))
    assert read_numbers(decode_sample(LocalStorage(tmp_path), sample)) == list(range(0, 50, 2))


def test_windows_of_the_plan(tmp_path: Path, write_clip: Write, read_numbers: Read, clip_dataset: Dataset) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=100, rate=NTSC)
    for sampling, start in (("first", 0), ("middle", 37)):
        sample = sample_of(path, clip_dataset(video={"num_frames": 25, "frame_sampling": sampling}))
        assert read_numbers(decode_sample(LocalStorage(tmp_path), sample)) == list(range(start, start + 25))
    sample = sample_of(path, clip_dataset(video={"num_frames": 25, "frame_sampling": "random"}))
    numbers = read_numbers(decode_sample(LocalStorage(tmp_path), sample))
    assert numbers == list(range(numbers[0], numbers[0] + 25))
    assert numbers[0] == round(sample.frames.start_seconds * float(NTSC))


def test_seeking_equals_reading_from_the_beginning(
    tmp_path: Path, write_clip: Write, read_numbers: Read, clip_dataset: Dataset
) -> None:
    """A window late in a clip with few key frames and reordered frames, bit for bit."""
    options = {"g": "48", "bf": "3", "preset": "ultrafast", "threads": "1"}
    path = write_clip(tmp_path / "a.mp4", frames=200, options=options)
    sample = sample_of(path, clip_dataset(video={"num_frames": 25}))
    whole = decode_sample(LocalStorage(tmp_path), window(sample, 0, 193))
    for start in (30, 47, 48, 49, 97, 150, 168):
        assert np.array_equal(
            decode_sample(LocalStorage(tmp_path), window(sample, start, 25)), whole[start : start + 25]
        )


@pytest.mark.parametrize(
    ("codec", "options"),
    [("mpeg4", {"qscale": "2", "g": "12", "bf": "2"}),
     ("libx264", {"crf": "12", "g": "12", "bf": "2", "preset": "ultrafast", "threads": "1"})],
)  # fmt: skip
def test_avi_with_reordered_pictures(
    tmp_path: Path, write_clip: Write, read_numbers: Read, clip_dataset: Dataset, codec: str, options: dict[str, str]
) -> None:
    """AVI stores decoding times only: the first picture has time 1, and those of H.264 come as 1, 3, 4, 2."""
    path = write_clip(tmp_path / "a.avi", frames=60, codec=codec, options=options)
    sample = sample_of(path, clip_dataset(video={"num_frames": 25}))
    for start in (0, 20, 33, 35):
        assert read_numbers(decode_sample(LocalStorage(tmp_path), window(sample, start, 25))) == list(
            range(start, start + 25)
        )


def test_single_frames(tmp_path: Path, write_clip: Write, read_numbers: Read, clip_dataset: Dataset) -> None:
    path = write_clip(tmp_path / "a.webm", frames=33, codec="libvpx-vp9")
    sample = sample_of(path, clip_dataset(video={"num_frames": 25}))
    assert read_numbers(decode_frames(LocalStorage(tmp_path), sample, [0, 12, 24])) == [0, 12, 24]


# Shape


def _disc(width: int, height: int, background: int = 0) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    radius = 0.4 * min(width, height)
    inside = np.hypot(columns - (width - 1) / 2, rows - (height - 1) / 2) <= radius
    return np.where(inside, 255, background).astype(np.uint8)[..., None].repeat(3, 2)


def _extent(frame: np.ndarray) -> tuple[float, float]:
    """Width and height of what is white, to fractions of a pixel."""
    shares = frame.mean(axis=-1) / 255
    middle_row, middle_column = shares.shape[0] // 2, shares.shape[1] // 2
    return float(shares[middle_row].sum()), float(shares[:, middle_column].sum())


@pytest.mark.parametrize("resolution", [96, 256, 480])
@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_a_circle_stays_round(
    tmp_path: Path, write_clip: Write, clip_dataset: Dataset, resolution: int, ending: str
) -> None:
    codec = {"codec": "gif", "pixel_format": "rgb8"} if ending == "gif" else {}
    path = write_clip(
        tmp_path / f"a.{ending}", frames=1, width=640, height=450, paint=lambda _: _disc(640, 450), **codec
    )
    sample = sample_of(path, clip_dataset(
        video={"num_frames": 1, "min_frames": 1}, resolution=resolution, resolution_type="pixel_area"))  # fmt: skip
    assert sample.crop.width / sample.crop.height != pytest.approx(640 / 450, rel=1e-3)  # the bucket has another shape
    width, height = _extent(decode_sample(LocalStorage(tmp_path), sample)[0])
    assert abs(width - height) <= 1
    assert width > 30


def test_non_square_pixels_become_square(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    """Stored 360x480 with pixels twice as wide as high: the stored ellipse is shown as a circle."""

    def wide_pixels(stream: object) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    def ellipse(_: int) -> np.ndarray:
        return _disc(720, 480)[:, ::2]

    path = write_clip(tmp_path / "a.mp4", frames=1, width=360, height=480, paint=ellipse, prepare=wide_pixels)
    sample = sample_of(path, clip_dataset(video={"num_frames": 1}, resolution=256))
    assert (sample.crop.width, sample.crop.height) == (384, 256)
    width, height = _extent(decode_sample(LocalStorage(tmp_path), sample)[0])
    assert abs(width - height) <= 1


def _quadrants(width: int, height: int) -> np.ndarray:
    """Red, green, blue, white: top left, top right, bottom left, bottom right."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (255, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 255, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 255)
    picture[height // 2 :, width // 2 :] = (255, 255, 255)
    return picture


def _corners(frame: np.ndarray) -> str:
    """Colour letters of the four corners: top left, top right, bottom left, bottom right."""
    names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    places = [(8, 8), (8, -8), (-8, 8), (-8, -8)]
    return "".join(names[tuple((frame[place] > 127).astype(int).tolist())] for place in places)


@pytest.mark.parametrize(
    ("rotation", "mirrored", "shown"),
    # Counter-clockwise turns of "rg/bw"; mirroring swaps left and right of the picture that is shown.
    [(0, False, "rgbw"), (90, False, "gwrb"), (180, False, "wbgr"), (270, False, "brwg")],
)
def test_turned_clips_are_turned(
    tmp_path: Path, write_clip: Write, clip_dataset: Dataset, rotation: int, mirrored: bool, shown: str
) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=1, width=256, height=128, paint=lambda _: _quadrants(256, 128),
                      rotation=rotation, mirrored=mirrored)  # fmt: skip
    sample = sample_of(path, clip_dataset(video={"num_frames": 1}, resolution=64))
    assert (sample.crop.width, sample.crop.height) == ((64, 128) if rotation in (90, 270) else (128, 64))
    assert _corners(decode_sample(LocalStorage(tmp_path), sample)[0]) == shown


def test_mirrored_clips_are_mirrored(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=1, paint=lambda _: _quadrants(128, 96), mirrored=True)
    sample = sample_of(path, clip_dataset(video={"num_frames": 1}))
    assert _corners(decode_sample(LocalStorage(tmp_path), sample)[0]) == "grwb"


@pytest.mark.parametrize(("orientation", "shown"), [(1, "rgbw"), (3, "wbgr"), (6, "brwg"), (8, "gwrb")])
def test_pictures_are_turned(tmp_path: Path, clip_dataset: Dataset, orientation: int, shown: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_quadrants(128, 96)).save(tmp_path / "a.png", exif=exif)
    sample = sample_of(tmp_path / "a.png", clip_dataset(dataset_type="image"))
    frames = decode_sample(LocalStorage(tmp_path), sample)
    assert frames.shape == (1, sample.crop.height, sample.crop.width, 3)
    assert _corners(frames[0]) == shown


@pytest.mark.parametrize("kind", ["video", "image"])
@pytest.mark.parametrize(
    ("style", "size", "shown"),
    # Windows of 96 in pictures of 192x96 and 96x192: the corner shows the first half, the centre both.
    [("corner", (192, 96), "rrbb"), ("center", (192, 96), "rgbw"), ("corner", (96, 192), "rgrg"),
     ("center", (96, 192), "rgbw")],
)  # fmt: skip
def test_where_the_window_sits(
    tmp_path: Path, write_clip: Write, clip_dataset: Dataset, kind: str, style: str, size: tuple[int, int], shown: str
) -> None:
    picture = _quadrants(*size)
    path = tmp_path / ("a.mp4" if kind == "video" else "a.png")
    if kind == "video":
        write_clip(path, frames=1, width=size[0], height=size[1], paint=lambda _: picture)
    else:
        Image.fromarray(picture).save(path)
    sample = sample_of(path, clip_dataset(dataset_type=kind, video={"num_frames": 1}, crop=True, crop_style=style))
    frame = decode_sample(LocalStorage(tmp_path), sample)[0]
    assert frame.shape == (96, 96, 3)
    assert _corners(frame) == shown


def test_huge_reductions_stay_smooth(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    """Forty to one, beyond what the video scaler can filter: a fine chequerboard becomes even grey."""
    board = (np.indices((1280, 1280)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    path = write_clip(tmp_path / "a.mp4", frames=1, width=1280, height=1280, paint=lambda _: board)
    sample = sample_of(path, clip_dataset(video={"num_frames": 1}, resolution=32))
    assert sample.crop.scaled_width == 32
    frame = decode_sample(LocalStorage(tmp_path), sample)[0].astype(int)
    assert abs(frame.mean() - 127) < 6
    assert frame.std() < 6


def test_reductions_are_antialiased(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    stripes = (np.arange(960) // 2 % 2 * 255).astype(np.uint8)[None, :, None].repeat(640, 0).repeat(3, 2)
    path = write_clip(tmp_path / "a.mp4", frames=1, width=960, height=640, paint=lambda _: stripes)
    sample = sample_of(path, clip_dataset(video={"num_frames": 1}, resolution=64))
    frame = decode_sample(LocalStorage(tmp_path), sample)[0, 8:-8, 8:-8].astype(int)
    assert frame.std() < 6


# Colour


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le", "gray"])
def test_black_and_white_fill_the_range(
    tmp_path: Path, write_clip: Write, clip_dataset: Dataset, pixel_format: str
) -> None:
    def half_white(_: int) -> np.ndarray:
        picture = np.zeros((96, 128, 3), np.uint8)
        picture[:, 64:] = 255
        return picture

    path = write_clip(tmp_path / "a.mp4", frames=9, paint=half_white, pixel_format=pixel_format,
                      options={"crf": "4", "preset": "ultrafast"})  # fmt: skip
    sample = sample_of(path, clip_dataset(video={"num_frames": 9}))
    pixels = frames_to_pixels(decode_sample(LocalStorage(tmp_path), sample))
    assert pixels.shape == (3, 9, 96, 128)
    assert pixels.dtype == torch.float32
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert pixels[:, :, 40:50, 8:40].max() < -0.98
    assert pixels[:, :, 40:50, 88:120].min() > 0.98


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path, clip_dataset: Dataset, ending: str) -> None:
    shades = np.repeat(np.array([0, 64, 128, 255], np.uint16) * 257, 32)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.broadcast_to(shades, (96, 128)).copy()).save(path)
    frame = decode_sample(LocalStorage(tmp_path), sample_of(path, clip_dataset(dataset_type="image")))[0]
    assert frame[48, 16::32].tolist() == [[shade] * 3 for shade in (0, 64, 128, 255)]


def test_transparent_grey_of_16_bits_is_shown_on_white(tmp_path: Path, clip_dataset: Dataset) -> None:
    shades = np.repeat(np.array([10_000, 128 * 257], np.uint16), 64)
    Image.fromarray(np.broadcast_to(shades, (96, 128)).copy()).save(tmp_path / "a.png", transparency=10_000)
    frame = decode_sample(LocalStorage(tmp_path), sample_of(tmp_path / "a.png", clip_dataset(dataset_type="image")))[0]
    assert frame[48, [16, 112]].tolist() == [[255] * 3, [128] * 3]


@pytest.mark.parametrize(("dtype", "kind"), [(np.int32, "whole"), (np.float32, "floating-point")])
def test_pictures_of_32_bit_numbers_are_refused(tmp_path: Path, dtype: type, kind: str) -> None:
    Image.fromarray(np.zeros((96, 128), dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(UnusableMedia, match=f"32-bit {kind} numbers as pixels: which value is white is not known"):
        probe(LocalStorage(tmp_path), "a.tiff")


def test_pixels_keep_their_places() -> None:
    frames = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    pixels = frames_to_pixels(frames)
    assert pixels.is_contiguous()
    for channel, frame, row, column in np.ndindex(3, 2, 3, 4):
        wanted = frames[frame, row, column, channel] / 127.5 - 1
        assert math.isclose(float(pixels[channel, frame, row, column]), wanted, abs_tol=1e-6)


def test_colours_survive(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    """Untagged standard-definition clips are BT.601: a saturated colour comes back as it was."""
    colour = np.full((96, 128, 3), (200, 40, 90), np.uint8)
    path = write_clip(tmp_path / "a.mp4", frames=1, paint=lambda _: colour, options={"crf": "4", "preset": "ultrafast"})
    frame = decode_sample(LocalStorage(tmp_path), sample_of(path, clip_dataset(video={"num_frames": 1})))[0]
    assert np.abs(frame.astype(int) - (200, 40, 90)).max() <= 4


@pytest.mark.parametrize(("transfer", "white"), [("smpte2084", 0.5807), ("arib-std-b67", 0.7498)])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_high_dynamic_range_becomes_standard_range(
    tmp_path: Path, write_clip: Write, clip_dataset: Dataset, transfer: str, white: float, codec: str
) -> None:
    """Left half: graphics white of 203 cd/m²; right half: 50 cd/m², which is 142 on an ordinary screen."""
    dim = {"smpte2084": 0.4403, "arib-std-b67": 0.4971}[transfer]  # 50 cd/m²

    def paint(_: int) -> np.ndarray:
        return np.repeat([round(255 * white), round(255 * dim)], 64)[None, :, None].repeat(96, 0).repeat(3, 2)

    # No B-frames: of a single frame, x265 on a busy machine has given packets in an order that no file takes.
    tags = f"transfer={transfer}:colorprim=bt2020:colormatrix=bt2020nc:log-level=none:bframes=0"
    name = {"libx264": "x264-params", "libx265": "x265-params"}[codec]
    path = write_clip(
        tmp_path / "a.mp4",
        frames=1,
        paint=lambda number: paint(number).astype(np.uint8),
        codec=codec,
        pixel_format={"libx264": "yuv420p", "libx265": "yuv420p10le"}[codec],
        options={name: tags, "crf": "4", "preset": "ultrafast"},
    )
    frame = decode_sample(LocalStorage(tmp_path), sample_of(path, clip_dataset(video={"num_frames": 1})))[0]
    assert np.abs(frame[:, 4:56].astype(int) - 230).max() <= 3
    assert np.abs(frame[:, 72:124].astype(int) - 142).max() <= 3


def test_transparent_parts_are_shown_on_white(tmp_path: Path, clip_dataset: Dataset) -> None:
    picture = Image.new("RGBA", (128, 96), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 64, 96))
    picture.save(tmp_path / "a.png")
    frame = decode_sample(LocalStorage(tmp_path), sample_of(tmp_path / "a.png", clip_dataset(dataset_type="image")))[0]
    assert frame[48, 10].tolist() == [0, 0, 255]
    assert frame[48, 110].tolist() == [255, 255, 255]


# Damage


def test_fewer_frames_than_planned(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    """A header that says 130 of a file with 119: told with both numbers, never used as a shorter clip."""
    path = write_clip(tmp_path / "a.mp4", frames=119)
    honest = sample_of(path, clip_dataset(video={"num_frames": 113}))
    info = honest.info
    lying = type(info)(**{**vars(info), "num_frames": 130, "duration_seconds": 130 / 25})
    sample = Sample("test", "a.mp4", lying, FramePlan(121, 25.0, 0.0), honest.crop, ("a",), 1)
    with pytest.raises(UnusableMedia, match=r"declares 130 frames \(5.20 s\).*end at 4.76 s: 119 of 121 planned"):
        decode_sample(LocalStorage(tmp_path), sample)
    exact = Sample("test", "a.mp4", info, FramePlan(119, 25.0, 0.0), honest.crop, ("a",), 1)
    assert len(decode_sample(LocalStorage(tmp_path), exact)) == 119


def test_one_frame_too_many(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    sample = sample_of(write_clip(tmp_path / "a.mp4", frames=25), clip_dataset(video={"num_frames": 25}))
    with pytest.raises(UnusableMedia, match="25 of 26 planned frames"):
        decode_sample(LocalStorage(tmp_path), window(sample, 0, 26))


def test_changed_and_vanished_files(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=9)
    sample = sample_of(path, clip_dataset(video={"num_frames": 9}))
    os.utime(path, ns=(1, 1))
    with pytest.raises(UnusableMedia, match="changed since it was scanned"):
        decode_sample(LocalStorage(tmp_path), sample)
    path.unlink()
    with pytest.raises(Unfit, match="cannot be reached"):
        decode_sample(LocalStorage(tmp_path), sample)


def test_flipped_bytes_give_frames_or_a_reason(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=9)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    outcomes = set()
    for seed in range(30):
        dice = np.random.default_rng(seed)
        damaged = whole.copy()
        damaged[dice.integers(0, len(damaged), 10)] ^= 255
        path.write_bytes(damaged.tobytes())
        try:
            sample = sample_of(path, clip_dataset())
            sample = Sample("test", path.name, sample.info, FramePlan(9, 25.0, 0.0), sample.crop, ("a",), 1)
            outcomes.add(len(decode_sample(LocalStorage(tmp_path), sample)))
        except Unfit as unfit:
            outcomes.add(0 if unfit.reason else -1)
    assert outcomes <= {0, 9}


def test_a_cut_picture(tmp_path: Path, clip_dataset: Dataset) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    sample = sample_of(path, clip_dataset(dataset_type="image"))
    with pytest.raises(UnusableMedia, match="damaged: the picture cannot be decoded"):
        decode_sample(LocalStorage(tmp_path), sample)


def test_crop_plan_of_a_sample_is_obeyed(tmp_path: Path, write_clip: Write, clip_dataset: Dataset) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=1, paint=lambda _: _quadrants(128, 96))
    sample = sample_of(path, clip_dataset(video={"num_frames": 1}))
    cut = Sample("test", path.name, sample.info, sample.frames, CropPlan(128, 96, 60, 70, 32, 32), ("a",), 1)
    assert _corners(decode_sample(LocalStorage(tmp_path), cut)[0]) == "wwww"
