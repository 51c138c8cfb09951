"""Headers: exact counts and rates, turning and pixel shape, and every kind of bad file by its reason."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from simpletuner.data.probe import _probe_video, probe
from simpletuner.data.sample import MediaInfo, Unfit
from simpletuner.data.storage import LocalStorage

NTSC = Fraction(30000, 1001)
Write = Callable[..., Path]


def probe_file(path: Path) -> MediaInfo:
    return probe(LocalStorage(path.parent), path.name)


def refused(path: Path) -> str:
    with pytest.raises(Unfit) as caught:
        probe_file(path)
    return caught.value.reason


@pytest.mark.parametrize("rate", [8, 25, NTSC, 50])
@pytest.mark.parametrize(
    ("ending", "codec", "pixel_format"),
    [("mp4", "libx264", "yuv420p"), ("mkv", "libx264", "yuv420p"), ("webm", "libvpx-vp9", "yuv420p"),
     ("avi", "mpeg4", "yuv420p"), ("gif", "gif", "rgb8"), ("mov", "mjpeg", "yuvj420p")],
)  # fmt: skip
def test_counts_and_rates(
    tmp_path: Path, write_clip: Write, ending: str, codec: str, pixel_format: str, rate: Fraction | int
) -> None:
    path = write_clip(tmp_path / f"a.{ending}", frames=19, rate=rate, codec=codec, pixel_format=pixel_format)
    info = probe_file(path)
    assert (info.kind, info.width, info.height, info.num_frames) == ("video", 128, 96, 19)
    # A gif counts hundredths of a second, so other rates are rounded by the format itself.
    assert info.frame_rate == pytest.approx(float(rate), rel=0.02 if ending == "gif" else 1e-9)
    assert info.duration_seconds == pytest.approx(19 / float(rate), rel=0.04 if ending == "gif" else 0.003)


def test_fragmented_mp4_is_counted_by_packets(tmp_path: Path, write_clip: Write) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=30, container_options={"movflags": "frag_keyframe+empty_moov"})
    assert probe_file(path).num_frames == 30


def test_mean_rate_of_a_variable_clip(tmp_path: Path, write_clip: Write) -> None:
    stamps = [*range(0, 400, 40), *range(400, 1400, 100)]
    info = probe_file(write_clip(tmp_path / "a.mkv", stamps_ms=stamps))
    assert info.num_frames == 20
    assert info.frame_rate == pytest.approx(20 / info.duration_seconds)
    assert 1.3 < info.duration_seconds < 1.45


def test_one_frame(tmp_path: Path, write_clip: Write) -> None:
    info = probe_file(write_clip(tmp_path / "a.mp4", frames=1))
    assert info.num_frames == 1
    assert info.frame_rate > 0


@pytest.mark.parametrize(("rotation", "size"), [(90, (96, 128)), (180, (128, 96)), (270, (96, 128))])
def test_turned_clips_have_their_shown_size(
    tmp_path: Path, write_clip: Write, rotation: int, size: tuple[int, int]
) -> None:
    info = probe_file(write_clip(tmp_path / "a.mp4", frames=3, rotation=rotation))
    assert (info.width, info.height) == size
    assert info.rotation == rotation


def test_sample_aspect(tmp_path: Path, write_clip: Write) -> None:
    def anamorphic(stream: object) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    info = probe_file(write_clip(tmp_path / "a.mp4", frames=3, prepare=anamorphic))
    assert (info.width, info.height) == (171, 96)
    assert info.sample_aspect == pytest.approx(4 / 3)


def test_pictures_and_their_orientation(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    info = probe_file(path)
    assert (info.kind, info.width, info.height, info.num_frames, info.rotation) == ("image", 20, 40, 1, 270)


def test_content_decides_not_the_ending(tmp_path: Path, write_clip: Write) -> None:
    picture = tmp_path / "really a picture.mp4"
    Image.new("RGB", (40, 20)).save(picture, format="PNG")
    assert probe_file(picture).kind == "image"
    clip = write_clip(tmp_path / "a.mp4", frames=3).rename(tmp_path / "really a clip.jpg")
    assert probe_file(clip).kind == "video"
    other = write_clip(tmp_path / "b.mkv", frames=3).rename(tmp_path / "really matroska.MP4")
    assert probe_file(other).num_frames == 3


# Bad files


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert refused(tmp_path / "a.mp4") == "empty file (0 bytes)"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer"),
        ("<!DOCTYPE html>\n<html><body>404</body></html>", "HTML page"),
        ("#EXTM3U\n#EXT-X-VERSION:3\nhttp://127.0.0.1/x.ts\n", "text file"),
        ("é" * 300, "text file"),
    ],
)
def test_texts(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "a.mp4").write_text(content, encoding="utf-8")
    assert reason in refused(tmp_path / "a.mp4")


def test_noise(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    assert "not a readable clip" in refused(tmp_path / "a.mp4")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_mp4_whose_index_at_the_end_is_cut_off(tmp_path: Path, write_clip: Write, part: float) -> None:
    path = write_clip(tmp_path / "a.mp4")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "truncated: the index (moov)" in refused(path)


@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
def test_mp4_with_its_index_first_is_not_used_as_a_shorter_clip(tmp_path: Path, write_clip: Write, part: float) -> None:
    path = write_clip(tmp_path / "a.mp4", container_options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "truncated: the header declares 33 frames, the file ends after" in refused(path)


def test_cut_matroska(tmp_path: Path, write_clip: Write) -> None:
    path = write_clip(tmp_path / "a.mkv", frames=100)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "truncated: the header declares 4.00 s, the file ends after" in refused(path)


def test_avi_whose_header_lies(tmp_path: Path, write_clip: Write) -> None:
    path = write_clip(tmp_path / "a.avi", frames=19, codec="mpeg4")
    content = bytearray(path.read_bytes())
    length = content.index(b"strh") + 8 + 32  # dwLength of the stream header
    assert struct.unpack_from("<I", content, length) == (19,)
    struct.pack_into("<I", content, length, 30)
    path.write_bytes(bytes(content))
    assert "declares 30 frames, the file holds 19" in refused(path)


def _write_tone(path: Path, cover: bool = False) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        picture = None
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        if picture is not None:
            shown = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(picture.encode(shown))
            container.mux(picture.encode())
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 44100
        for _ in range(4):
            container.mux(stream.encode(tone))
        container.mux(stream.encode())


def test_audio_only(tmp_path: Path) -> None:
    _write_tone(tmp_path / "a.mp4")
    assert refused(tmp_path / "a.mp4") == "no video stream: the file holds only audio"


def test_a_cover_picture_is_no_clip(tmp_path: Path) -> None:
    _write_tone(tmp_path / "a.mp4", cover=True)
    assert refused(tmp_path / "a.mp4") == "no video stream: the file holds only audio and a cover picture"


def test_giant_pictures_are_refused_by_their_header(tmp_path: Path) -> None:
    chunk = struct.pack(">II5B", 60000, 60000, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + chunk
    (tmp_path / "a.png").write_bytes(
        header + struct.pack(">I", zlib.crc32(b"IHDR" + chunk)) + b"\0\0\1\0IDAT" + b"\0" * 64
    )
    assert "at most 64 are decoded" in refused(tmp_path / "a.png")
    Image.new("1", (9000, 8000)).save(tmp_path / "b.png")
    assert "9000x8000 = 72" in refused(tmp_path / "b.png")


@pytest.mark.parametrize(("transfer", "curve"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG"), ("bt709", "")])
def test_high_dynamic_range_is_known_by_its_curve(tmp_path: Path, write_clip: Write, transfer: str, curve: str) -> None:
    options = {"x264-params": f"transfer={transfer}", "preset": "ultrafast"}
    assert probe_file(write_clip(tmp_path / "a.mp4", frames=2, options=options)).transfer == curve


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    assert "not an ordinary file" in refused(tmp_path / "a.mp4")


def test_missing_and_dangling(tmp_path: Path) -> None:
    assert "cannot be reached" in refused(tmp_path / "gone.mp4")
    (tmp_path / "a.mp4").symlink_to(tmp_path / "nothing.mp4")
    assert refused(tmp_path / "a.mp4") == "the link points to nothing"


def test_flipped_bytes_never_crash(tmp_path: Path, write_clip: Write) -> None:
    whole = write_clip(tmp_path / "a.mp4", frames=9).read_bytes()
    path = tmp_path / "b.mp4"
    outcomes = set()
    for seed in range(40):
        dice = np.random.default_rng(seed)
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[dice.integers(0, len(damaged), 20)] ^= 255
        path.write_bytes(damaged.tobytes())
        try:
            outcomes.add(probe_file(path).num_frames >= 1)
        except Unfit as unusable:
            outcomes.add(bool(unusable.reason))
    assert outcomes == {True}


# What else is noted


def test_interlaced_clips_are_noted(tmp_path: Path, write_clip: Write) -> None:
    def interlaced(stream: object) -> None:
        stream.codec_context.flags |= av.codec.context.Flags.interlaced_dct

    options = {"x264-params": "tff=1", "preset": "ultrafast"}
    assert probe_file(write_clip(tmp_path / "a.mp4", frames=3, options=options, prepare=interlaced)).interlaced
    assert not probe_file(write_clip(tmp_path / "b.mp4", frames=3)).interlaced


def test_variable_rates_are_noted(tmp_path: Path, write_clip: Write) -> None:
    uneven = [*range(0, 400, 40), *range(400, 1400, 100)]
    assert probe_file(write_clip(tmp_path / "a.mkv", stamps_ms=uneven)).variable_rate
    assert probe_file(write_clip(tmp_path / "a.mp4", stamps_ms=uneven)).variable_rate
    dropped = [stamp for stamp in range(0, 1600, 40) if stamp != 800]
    assert probe_file(write_clip(tmp_path / "b.mkv", stamps_ms=dropped)).variable_rate
    rounded = [round(number * 1001 / 30) for number in range(40)]  # even, but for whole milliseconds
    assert not probe_file(write_clip(tmp_path / "c.mkv", stamps_ms=rounded)).variable_rate


def test_sound_and_pixel_format_are_noted(tmp_path: Path, write_clip: Write) -> None:
    deep = probe_file(write_clip(tmp_path / "a.mp4", frames=3, pixel_format="yuv420p10le"))
    assert (deep.codec, deep.pixel_format, deep.audio) == ("h264", "yuv420p10le", "")
    with av.open(str(tmp_path / "b.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=44100)
        for _ in range(3):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 44100
        container.mux(sound.encode(tone))
        container.mux([*video.encode(), *sound.encode()])
    assert (probe_file(tmp_path / "b.mp4").codec, probe_file(tmp_path / "b.mp4").audio) == ("mpeg4", "aac")


@pytest.mark.parametrize("size", [(127, 95), (1, 1), (33, 96)])
def test_odd_sizes(tmp_path: Path, write_clip: Write, size: tuple[int, int]) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=3, width=size[0], height=size[1], codec="libx264",
                      pixel_format="yuv444p", paint=lambda _: np.zeros((size[1], size[0], 3), np.uint8))  # fmt: skip
    info = probe_file(path)
    assert (info.width, info.height, info.num_frames) == (*size, 3)


@pytest.mark.parametrize(
    ("ending", "codec", "pixel_format", "shaped"),
    [("mp4", "libx264", "yuv420p", {"rotation": 90}), ("mp4", "libx264", "yuv420p", {"stamps_ms": [0, 40, 80, 300]}),
     ("mp4", "libx265", "yuv420p10le", {"options": {"x265-params": "log-level=none"}}), ("mp4", "mpeg4", "yuv420p", {}),
     ("mp4", "libsvtav1", "yuv420p", {"options": {"preset": "12"}}), ("mp4", "libvpx-vp9", "yuv420p", {}),
     ("mov", "mjpeg", "yuvj420p", {}), ("mov", "prores_ks", "yuv422p10le", {})],
)  # fmt: skip
def test_the_index_alone_tells_what_a_full_look_tells(
    tmp_path: Path, write_clip: Write, ending: str, codec: str, pixel_format: str, shaped: dict[str, Any]
) -> None:
    def widen(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = write_clip(
        tmp_path / f"a.{ending}", frames=9, codec=codec, pixel_format=pixel_format, prepare=widen, **shaped
    )
    storage = LocalStorage(tmp_path)
    file = storage.stat(path.name)
    by_index = _probe_video(storage, file, "", by_index=True)
    assert by_index == _probe_video(storage, file, "") == probe(storage, path.name)
