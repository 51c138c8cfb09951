"""The right frames, over codecs, containers and rates; and only a window's share of a long file is read and kept."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest

from simpletuner.config.dataset import ClipDataset
from simpletuner.data.decode import decode_sample
from simpletuner.data.find import find_samples
from simpletuner.data.geometry import plan_crop, plan_frames
from simpletuner.data.probe import probe
from simpletuner.data.sample import FramePlan, Sample
from simpletuner.data.storage import Listing, LocalStorage, StoredFile

Write = Callable[..., Path]
Read = Callable[[np.ndarray], list[int]]
Dataset = Callable[..., ClipDataset]
FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)
RATES = [8, 20, FILM, 25, NTSC, 50, 60]
FEW_RATES = [FILM, 50]


@dataclass(frozen=True)
class Raster:
    spatial: int = 32
    temporal: int = 8


@dataclass(frozen=True)
class Format:
    """One way to write a clip; `codec` is the encoder, `name` what the probe calls it."""

    name: str
    ending: str
    codec: str
    pixel_format: str = "yuv420p"
    options: tuple[tuple[str, str], ...] | None = None

    def write(self, write_clip: Write, folder: Path, **more: object) -> Path:
        options = None if self.options is None else dict(self.options)
        return write_clip(folder / f"a.{self.ending}", codec=self.codec, pixel_format=self.pixel_format,
                          options=options, **more)  # fmt: skip

    def __str__(self) -> str:
        return f"{self.name}-{self.ending}"


QUIET_HEVC = (("preset", "ultrafast"), ("crf", "12"), ("x265-params", "log-level=none:pools=1:frame-threads=1"))
FAST_VP8 = (("cpu-used", "8"), ("deadline", "realtime"), ("crf", "10"), ("b", "2000000"))
GOOD_AV1 = (("preset", "8"), ("crf", "8"), ("svtav1-params", "lp=1"))
FORMATS = [
    Format("h264", "mp4", "libx264"),
    Format("h264", "mkv", "libx264"),
    Format("hevc", "mp4", "libx265", options=QUIET_HEVC),
    Format("vp8", "webm", "libvpx", options=FAST_VP8),
    Format("vp9", "webm", "libvpx-vp9"),
    Format("av1", "mp4", "libsvtav1", options=GOOD_AV1),
    Format("av1", "mkv", "libsvtav1", options=GOOD_AV1),
    Format("mpeg4", "avi", "mpeg4"),
    Format("mpeg4", "mp4", "mpeg4"),
    Format("mjpeg", "mov", "mjpeg", "yuvj420p", ()),
    Format("mjpeg", "avi", "mjpeg", "yuvj420p", ()),
    Format("gif", "gif", "gif", "rgb8", ()),
    Format("prores", "mov", "prores_ks", "yuv422p10le", ()),
]


def sample_of(path: Path, dataset: ClipDataset) -> Sample:
    info = probe(LocalStorage(path.parent), path.name)
    return Sample(dataset.id, path.name, info, plan_frames(info, dataset, 8, path.name),
                  plan_crop(info.width, info.height, dataset, 32, path.name), ("a",), 1)  # fmt: skip


def own_rate_case(form: Format, rate: Fraction | int) -> object:
    default = form in FORMATS[:2] or rate in FEW_RATES
    return pytest.param(form, rate, marks=() if default else pytest.mark.slow, id=f"{form}-{float(rate):.4g}")


@pytest.mark.parametrize(("form", "rate"), [own_rate_case(form, rate) for form in FORMATS for rate in RATES])
def test_own_rate_gives_each_frame_once(
    tmp_path: Path, write_clip: Write, read_numbers: Read, clip_dataset: Dataset, form: Format, rate: Fraction | int
) -> None:
    sample = sample_of(form.write(write_clip, tmp_path, frames=60, rate=rate), clip_dataset(video={"num_frames": 25}))
    assert (sample.info.codec, sample.info.num_frames, sample.info.variable_rate) == (form.name, 60, False)
    for start in (0, 1, 29, 35):  # 35 + 25 is the end of the clip
        plan = FramePlan(25, sample.info.frame_rate, start / sample.info.frame_rate)
        frames = decode_sample(LocalStorage(tmp_path), replace(sample, frames=plan))
        assert frames.shape == (25, 96, 128, 3)
        assert frames.dtype == np.uint8
        assert read_numbers(frames) == list(range(start, start + 25))


def resampled_case(form: Format, rate: Fraction | int, trained: float) -> object:
    default = form in FORMATS[:1] or (form.ending, rate) in (("gif", 8), ("webm", NTSC)) or rate == 50
    name = f"{form}-{float(rate):.4g}-{float(trained):.4g}"
    return pytest.param(form, rate, float(trained), marks=() if default else pytest.mark.slow, id=name)


PAIRS = [(50, 25), (60, 25), (NTSC, 25), (FILM, 25), (20, 25), (8, 25), (25, 16), (25, NTSC)]


@pytest.mark.parametrize(
    ("form", "rate", "trained"), [resampled_case(form, *pair) for form in FORMATS for pair in PAIRS]
)
def test_another_rate_shows_the_right_moments(
    tmp_path: Path, write_clip: Write, read_numbers: Read, clip_dataset: Dataset,
    form: Format, rate: Fraction | int, trained: float,
) -> None:  # fmt: skip
    """Trap 19: the speed stays true, whatever the two rates are."""
    path = form.write(write_clip, tmp_path, frames=65, rate=rate)
    sample = sample_of(path, clip_dataset(video={"num_frames": 25}, framerate=trained))
    assert sample.frames.frame_rate == trained
    numbers = read_numbers(decode_sample(LocalStorage(tmp_path), sample))
    # Each frame shows what the source showed at that moment, to within half of the shorter interval.
    half = 0.5 / max(float(rate), trained)
    # A gif rounds every frame's time to hundredths of a second.
    slack = 0.005 if form.ending == "gif" else 0.0015
    for index, number in enumerate(numbers):
        middle = index / trained + half
        assert number / float(rate) - slack <= middle < (number + 1) / float(rate) + slack


@pytest.mark.parametrize("form", [FORMATS[0], FORMATS[1], FORMATS[3], FORMATS[4], FORMATS[12]], ids=str)
def test_variable_rate_follows_the_time_stamps(
    tmp_path: Path, write_clip: Write, read_numbers: Read, clip_dataset: Dataset, form: Format
) -> None:
    """Ten frames of 40 ms, then ten of 120 ms: at 25 fps the slow ones are shown three times."""
    stamps = [*range(0, 400, 40), *range(400, 1600, 120)]
    path = form.write(write_clip, tmp_path, stamps_ms=stamps)
    sample = sample_of(path, clip_dataset(video={"num_frames": 33}, framerate=25.0))
    assert sample.info.variable_rate
    shown = [*range(10), *(number for number in range(10, 20) for _ in range(3))]
    assert read_numbers(decode_sample(LocalStorage(tmp_path), sample)) == shown[:33]


@pytest.mark.parametrize("form", [FORMATS[0], FORMATS[4], FORMATS[7], FORMATS[11]], ids=str)
def test_split_clips_show_every_frame_once(
    tmp_path: Path, write_clip: Write, read_numbers: Read, clip_dataset: Dataset, form: Format
) -> None:
    """Trap 17: consecutive windows, each a sample of its own name, up to the remainder."""
    form.write(write_clip, tmp_path, frames=100, rate=NTSC)
    dataset = clip_dataset(tmp_path, video={"num_frames": 17, "frame_sampling": "split"})
    found = find_samples([dataset], {"test": LocalStorage(tmp_path)}, Raster(), workers=1, emit=lambda event: None)
    name = f"test/a.{form.ending}"
    assert [sample.name for sample in found.samples] == [name, *(f"{name}#{part}" for part in range(2, 6))]
    shown = [number for sample in found.samples
             for number in read_numbers(decode_sample(LocalStorage(tmp_path), sample))]  # fmt: skip
    assert shown == list(range(85))
    assert "test: 1 clip is trained as 5 windows; 15 frames at their ends are too few for another" in found.notes


# A window of a long file ------------------------------------------------------------------------


class CountingStorage:
    """A far place that counts the bytes read from it; fulfils `Storage`."""

    def __init__(self, folder: Path) -> None:
        self._inner = LocalStorage(folder)
        self.read_bytes = 0

    @property
    def place(self) -> str:
        return self._inner.place

    def list_files(self) -> Listing:
        return self._inner.list_files()

    def stat(self, path: str) -> StoredFile:
        return self._inner.stat(path)

    def open(self, path: str) -> BinaryIO:
        return CountingFile(self._inner.open(path), self)  # type: ignore[return-value]

    def local_path(self, path: str) -> Path | None:
        return None


class CountingFile:
    def __init__(self, inner: BinaryIO, owner: CountingStorage) -> None:
        self._inner, self._owner = inner, owner
        self.seek, self.tell, self.close, self.seekable = inner.seek, inner.tell, inner.close, inner.seekable

    def read(self, size: int = -1) -> bytes:
        content = self._inner.read(size)
        self._owner.read_bytes += len(content)
        return content

    def __enter__(self) -> CountingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()


def write_noise(path: Path, width: int, height: int, frames: int, key_frames: int) -> None:
    """A clip that cannot be made small: rolling noise."""
    noise = np.random.default_rng(0).integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "40", "g": str(key_frames)}
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(np.roll(noise, 4 * number, 1), format="yuv420p")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_window_in_the_middle_does_not_read_the_file_whole(
    tmp_path: Path, clip_dataset: Dataset, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    write_noise(path, 320, 240, frames=600, key_frames=25)
    size = path.stat().st_size
    storage = CountingStorage(tmp_path)
    sample = sample_of(path, clip_dataset(video={"num_frames": 25, "frame_sampling": "middle"}))
    assert 250 < sample.frames.start_seconds * 25 < 300
    tracemalloc.start()
    frames = decode_sample(storage, sample)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(frames, decode_sample(LocalStorage(tmp_path), sample))
    assert storage.read_bytes < 0.2 * size  # 25 of 600 frames, from a key frame on, and the index
    assert peak < frames.nbytes + 10 * frames[0].nbytes


MEASURE = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_data_decode_exact import CountingStorage, sample_of
from simpletuner.config.dataset import ClipDataset, VideoRules
from simpletuner.data.decode import decode_sample
path = Path(sys.argv[1])
rules = VideoRules(num_frames=121, frame_sampling="middle")
sample = sample_of(path, ClipDataset(id="d", resolution=480, video=rules))
storage = CountingStorage(path.parent)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
frames = decode_sample(storage, sample)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.stdout.write(json.dumps([frames.shape[0], frames.nbytes, storage.read_bytes, (after - before) * 1024]))
"""


@pytest.mark.slow
def test_121_of_3000_frames_of_a_1080p_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_noise(path, 1920, 1080, frames=3000, key_frames=100)
    arguments = [sys.executable, "-c", MEASURE, str(path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    count, frame_bytes, read_bytes, grown_bytes = json.loads(done.stdout)
    assert count == 121
    assert read_bytes < 0.08 * path.stat().st_size
    assert grown_bytes < frame_bytes + 100_000_000  # the decoder's own pictures, whatever the length


def test_pictures_are_let_go_at_once(tmp_path: Path) -> None:
    """Frames whose side data was asked for are freed only when Python looks for cycles: 3 MB each at 1080p."""
    path = tmp_path / "a.mp4"
    write_noise(path, 960, 540, frames=150, key_frames=50)
    script = MEASURE.replace("import json", "import gc; gc.disable()\nimport json")
    arguments = [sys.executable, "-c", script, str(path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    _, frame_bytes, _, grown_bytes = json.loads(done.stdout)
    assert grown_bytes < frame_bytes + 45_000_000  # 121 pictures would be 94 MB
