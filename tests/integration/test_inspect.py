"""The page of `data inspect`: what it shows is what the caches hold, side by side with the source."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.resolve import resolve_config
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Severity
from simpletuner.data.decode import decode_sample, frames_to_pixels
from simpletuner.data.findings import Finding
from simpletuner.data.sample import Sample
from simpletuner.data.storage import LocalStorage
from simpletuner.data.world import write_world
from simpletuner.events.types import Event, Noticed, StageFinished
from simpletuner.recipes.inspect import choose_samples, inspect_data, measure_error, pixels_to_frames
from simpletuner.recipes.survey import find_data


class Page(HTMLParser):
    """Addresses, anchors and words of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: list[str] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        facts = dict(attributes)
        self.addresses += [value for key, value in attributes if key in ("href", "src") and value]
        self.anchors += [str(facts["id"])] if facts.get("id") else []

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


@pytest.fixture
def project(tmp_path: Path, miniature: Path) -> RunConfig:
    """Three generated clips, one of them with a strange name and a Chinese caption, and one damaged file."""
    clips = tmp_path / "clips"
    write_world(clips, clips=3, width=96, height=64, num_frames=12, frame_rate=12.0, seed=1)
    (clips / "clip-002.mp4").rename(clips / "odd #1 & <b>.mp4")
    (clips / "clip-002.txt").unlink()
    (clips / "odd #1 & <b>.txt").write_text("一个 <i>圆形</i> 移动\nA shape moves across the picture from one side.\n")
    (clips / "cut.mp4").write_bytes((clips / "clip-000.mp4").read_bytes()[:900])
    (clips / "cut.txt").write_text("never seen")
    return configure(tmp_path, clips, miniature)


def configure(folder: Path, clips: Path, model: Path, **dataset: object) -> RunConfig:
    entry = {
        "id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": str(clips),
        "cache_dir_vae": str(folder / "cache"), "caption_strategy": "textfile", "resolution": 64,
        "resolution_type": "pixel", "video": {"num_frames": 9},
    }  # fmt: skip
    text = {"id": "text", "dataset_type": "text_embeds", "default": True, "cache_dir": str(folder / "text")}
    options = {
        "model_family": "ltxvideo", "model_type": "lora", "pretrained_model_name_or_path": str(model),
        "output_dir": str(folder / "output"), "data_backend_config": str(folder / "data.json"), "max_train_steps": 2,
        "validation_disable": True, "vae_dtype": "fp32", "vae_cache_dtype": "fp32", "tracker_run_name": "Try <1>",
        "optimizer": "torch-adamw", "mixed_precision": "no",
    }  # fmt: skip
    (folder / "data.json").write_text(json.dumps([entry | dataset, text]))
    (folder / "config.json").write_text(json.dumps(options))
    return resolve_config(["--config", str(folder / "config.json")], {}, folder)


def samples_of(config: RunConfig) -> tuple[Sample, ...]:
    return find_data(config, lambda event: None)[0].samples


def test_without_a_cache_the_source_is_shown_alone(project: RunConfig, tmp_path: Path) -> None:
    page = inspect_data(project, tmp_path / "page", lambda event: None)
    shown = Page(page)
    assert "not cached yet" in shown.words
    assert "latents.png" not in " ".join(shown.addresses)
    assert len(list((tmp_path / "page/pictures").glob("*-source.png"))) == 3
    assert not list((tmp_path / "cache").glob("**/*.safetensors"))


def test_the_page_shows_what_the_cache_holds(project: RunConfig, tmp_path: Path) -> None:
    events: list[Event] = []
    folder = tmp_path / "page"
    page = Page(inspect_data(project, folder, events.append, encode=True))
    summaries = {event.stage: event.summary for event in events if isinstance(event, StageFinished)}
    assert summaries["latents"].startswith("3 encoded")

    # Offline and whole: every address is a file beside the page or an anchor on it.
    for address in page.addresses:
        assert not re.match(r"^[a-z]+:|^/", address), address
        if address.startswith("#"):
            assert address[1:] in page.anchors
        else:
            assert (folder / address).is_file(), address

    # Words as they are, markup in captions and names included.
    for phrase in ("Try <1>", "odd #1 & <b>.mp4", "一个 <i>圆形</i> 移动", "96x64@9", "cut.mp4", "truncated"):
        assert phrase in page.words, phrase
    assert "0.00 to 0.67 s of 1.00 s at 12 fps" in page.words

    # The middle frame of the source is the one that is trained, and the rest of the picture is something else.
    first = samples_of(project)[0]
    source = decode_sample(LocalStorage(tmp_path / "clips"), first)
    middle = np.asarray(Image.open(folder / "pictures/001-full.png"))
    assert middle.shape == (64, 192, 3)
    assert np.array_equal(middle[:, :96], source[4])
    decoded = middle[:, 96:]
    family = FAMILIES.load("ltxvideo")
    autoencoder = family.load_autoencoder(family.resolve(project.model), torch.float32, torch.device("cpu"))
    latents = autoencoder.encode(frames_to_pixels(source)[None])
    truth = pixels_to_frames(autoencoder.decode(latents)[0])
    assert np.abs(truth[4].astype(int) - decoded).max() <= 1
    difference = np.asarray(Image.open(folder / "pictures/001-difference.png"))
    expected = np.minimum(np.abs(source[4].astype(int) - decoded) * 4, 255)
    assert np.array_equal(difference[:, 2 * 100 : 2 * 100 + 96], expected)
    assert (folder / "contact_sheet_1.png").stat().st_size > 1000

    rows = list(csv.DictReader((folder / "samples.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["path"] for row in rows] == ["clip-000.mp4", "clip-001.mp4", "odd #1 & <b>.mp4"]
    assert {row["latents"] for row in rows} == {"cached"}
    assert rows[2]["findings"] == "short caption" or "foreign caption" in rows[2]["findings"]


def test_a_second_look_encodes_nothing_and_pictures_are_limited(project: RunConfig, tmp_path: Path) -> None:
    inspect_data(project, tmp_path / "first", lambda event: None, limit=0, encode=True)
    assert not (tmp_path / "first/pictures").exists()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert stamps
    events: list[Event] = []
    page = Page(inspect_data(project, tmp_path / "second", events.append, limit=1))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == stamps
    assert len(list((tmp_path / "second/pictures").glob("*-latents.png"))) == 1
    assert "Samples without pictures" in page.words
    looks = next(event for event in events if isinstance(event, StageFinished) and event.stage == "looks")
    assert looks.summary == "3 remembered"


def test_a_damaged_entry_and_a_missing_model_are_told(project: RunConfig, tmp_path: Path) -> None:
    inspect_data(project, tmp_path / "page", lambda event: None, limit=0, encode=True)
    entry = next(iter((tmp_path / "cache").rglob("clip-000*.safetensors")))
    blob = bytearray(entry.read_bytes())
    blob[-1] ^= 0xFF
    entry.write_bytes(bytes(blob))
    page = Page(inspect_data(project, tmp_path / "page", lambda event: None))
    assert "the cache entry is damaged" in page.words
    (tmp_path / "no-model").mkdir()
    lost = configure(tmp_path, tmp_path / "clips", tmp_path / "no-model")
    events: list[Event] = []
    page = Page(inspect_data(lost, tmp_path / "page", events.append))
    assert "the model was not found" in page.words
    assert any(isinstance(event, Noticed) and "no-model" in event.text for event in events)


def test_real_clips_too(real_clips: Path, miniature: Path, tmp_path: Path) -> None:
    config = configure(tmp_path, real_clips, miniature, resolution=64)
    page = Page(inspect_data(config, tmp_path / "page", lambda event: None, encode=True, limit=6))
    assert len(list((tmp_path / "page/pictures").glob("*-latents.png"))) == 6
    assert "rabbit" in page.words


def test_flagged_samples_are_drawn_first(project: RunConfig) -> None:
    samples = list(samples_of(project))
    last = samples[-1]
    findings = [Finding("black", Severity.WARNING, last.dataset, last.path, "black", sample=last.name)]
    assert choose_samples(samples, findings, 1) == [last]
    assert choose_samples(samples, findings, 2) == [samples[0], last]
    assert choose_samples(samples, [], 2) == [samples[0], samples[1]]
    assert choose_samples(samples, findings, 99) == samples
    assert choose_samples(samples, findings, 0) == []


def test_errors_and_pixels() -> None:
    source = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3), dtype=np.uint8)
    assert np.array_equal(pixels_to_frames(frames_to_pixels(source)), source)
    assert measure_error(source, source).psnr_db == 99.0
    decoded = np.full((2, 4, 4, 3), 100, np.uint8)
    truth = decoded.copy()
    truth[1] += 10
    error = measure_error(truth, decoded)
    assert (error.mean_levels, error.worst_levels, error.worst_frame) == (5.0, 10.0, 1)
    assert error.psnr_db == pytest.approx(10 * np.log10(255**2 / 50))
    assert torch.equal(
        frames_to_pixels(pixels_to_frames(torch.full((3, 1, 2, 2), -2.0))), torch.full((3, 1, 2, 2), -1.0)
    )
