"""Previews: at the steps asked for, of the clean latents, cheap, and never in the way."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from simpletuner.caching.prompts import PromptCache
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.sections.validation import ValidationSection
from simpletuner.core.errors import UserError
from simpletuner.data.probe import probe
from simpletuner.data.sample import CropPlan, FramePlan, Sample
from simpletuner.data.storage import LocalStorage
from simpletuner.events.types import Event, Noticed, PreviewGenerated, VideoGenerated
from simpletuner.maths.linear_map import LinearMap
from simpletuner.models.family import GenerationStep
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.validation.generate import Studio, generate_videos, plan_jobs
from simpletuner.validation.preview import PreviewedVideo, Previewer, draw_preview
from simpletuner.validation.preview_decoders import (
    Pictures,
    PreviewSources,
    open_autoencoder,
    open_linear,
)
from simpletuner.validation.preview_map import (
    DETAIL,
    PreviewMap,
    cell_colours,
    fit_preview_map,
    load_preview_map,
    save_preview_map,
)
from simpletuner.validation.video_file import write_video

from .conftest import NoiseFamily

VIDEO = PreviewedVideo(5, "adapter", "cat", "a cat", 96, 64, 12.5, "step_5_cat_96x64.mp4")


class Painter:
    """Paints the mean of the latents; remembers what it was given."""

    told = "a test"

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.fails = False

    def paint(self, latents: Tensor) -> Pictures:
        if self.fails:
            raise RuntimeError("CUDA out of memory\nTried to allocate")
        self.seen.append(latents)
        level = int(latents.mean().clamp(0, 255))
        return Pictures(np.stack([np.full((8, 12, 3), level + 60 * frame, np.uint8) for frame in range(3)]), 8)


def step(number: int, total: int = 20) -> GenerationStep:
    return GenerationStep(number, total, 1 - number / total, torch.full((1, 4, 2, 2, 3), float(number)))


def previews(events: Sequence[Event]) -> list[PreviewGenerated]:
    return [event for event in events if isinstance(event, PreviewGenerated)]


def test_twenty_steps_at_intervals_of_five(tmp_path: Path, events: list[Event]) -> None:
    """Trap 90: 5, 10, 15, 20 and no other, each of the latents of its step."""
    painter = Painter()
    previewer = Previewer(painter, tmp_path, 5, events.append)
    for number in range(1, 21):
        previewer.look(VIDEO, step(number))
    previewer.wait()
    previewer.close()
    made = previews(events)
    assert [event.inference_step for event in made] == [5, 10, 15, 20]
    assert [float(latents.mean()) for latents in painter.seen] == [5, 10, 15, 20]
    assert [event.sigma for event in made] == pytest.approx([0.75, 0.5, 0.25, 0])
    last = made[-1]
    assert (last.step, last.nickname, last.inference_steps, last.width, last.height) == (5, "cat", 20, 96, 64)
    with Image.open(last.path) as picture:
        assert picture.format == "GIF"
        assert picture.info["loop"] == 0
        assert (picture.size, getattr(picture, "n_frames", 1)) == ((48, 32), 3)
        assert abs(np.asarray(picture.convert("RGB")).mean() - 20) < 3


def test_previews_of_an_earlier_validation_are_removed(tmp_path: Path, events: list[Event]) -> None:
    (tmp_path / "mine.gif").write_bytes(b"not a preview of ours")
    previewer = Previewer(Painter(), tmp_path, 10, events.append)
    for video in (VIDEO, PreviewedVideo(9, "ema", "cat", "a cat", 96, 64, 12.5, "step_9_ema_cat_96x64.mp4")):
        previewer.look(video, step(10))
        previewer.look(video, step(20))
    previewer.wait()
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine.gif", "step_9_ema_cat_96x64_preview_010.gif", "step_9_ema_cat_96x64_preview_020.gif"
    }  # fmt: skip


def test_a_failure_costs_one_warning_and_no_video(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    painter = Painter()
    painter.fails = True
    studio = Studio(
        family.model.transformer, family, None, prompt_cache, settings, 12.5,
        previewer=Previewer(painter, tmp_path / "p", 1, events.append),
    )  # type: ignore[arg-type]  # fmt: skip
    prompts = [ValidationPrompt("cat", "a cat"), ValidationPrompt("dog", "a dog")]
    jobs = plan_jobs(prompts, settings, 5, "adapter", tmp_path)
    made = generate_videos(studio, family.model.wearing, object, jobs, step=5, weights="adapter", emit=events.append)  # type: ignore[arg-type]
    assert len(made) == 2
    (warning,) = [event for event in events if isinstance(event, Noticed)]
    assert warning.severity == "warning"
    assert "CUDA out of memory. The videos are made as before" in warning.text


def test_a_folder_that_cannot_be_written_switches_previews_off(tmp_path: Path, events: list[Event]) -> None:
    (tmp_path / "file").write_text("in the way")
    previewer = Previewer(Painter(), tmp_path / "file", 1, events.append)
    for number in (1, 2):
        previewer.look(VIDEO, step(number))
        previewer.wait()
    assert [type(event) for event in events] == [Noticed]


def test_previews_come_before_the_video_they_promise(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    settings = settings.model_copy(update={"validation_num_inference_steps": 4})
    studio = Studio(
        family.model.transformer, family, None, prompt_cache, settings, 12.5,
        previewer=Previewer(Painter(), tmp_path / "p", 2, events.append),
    )  # type: ignore[arg-type]  # fmt: skip
    jobs = plan_jobs([ValidationPrompt("cat", "a cat")], settings, 5, "adapter", tmp_path)
    generate_videos(studio, family.model.wearing, object, jobs, step=5, weights="adapter", emit=events.append)  # type: ignore[arg-type]
    told = [event for event in events if isinstance(event, (PreviewGenerated, VideoGenerated))]
    assert [type(event).__name__ for event in told] == ["PreviewGenerated", "PreviewGenerated", "VideoGenerated"]
    assert Path(told[0].path).name == "step_5_cat_96x64_preview_002.gif"


def test_a_preview_is_small_and_as_fast_as_the_video() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (4, 64, 96, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(draw_preview(Pictures(frames, 8), 768, 512, 25.0))) as picture:
        assert picture.size == (256, 171)
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(picture)] == [320] * 4


def clips(count: int, noise: float = 0.0) -> list[tuple[Tensor, np.ndarray]]:
    """Latents that hold the colours of each cell in a mixture, and the frames of these colours."""
    generator = torch.Generator().manual_seed(1)
    mixture = torch.randn(128, DETAIL * DETAIL * 3, generator=generator)
    made = []
    for _ in range(count):
        colours = torch.randint(40, 215, (3, 2 * DETAIL, 3 * DETAIL, 3), generator=generator)
        small = colours.repeat_interleave(32 // DETAIL, 1).repeat_interleave(32 // DETAIL, 2)
        frames = torch.cat([small[:1], small[1:].repeat_interleave(8, 0)]).to(torch.uint8).numpy()
        cells = cell_colours(frames, 3, 2, 3)
        latents = (cells - 0.5) @ mixture.T + noise * torch.randn(3, 2, 3, 128, generator=generator)
        made.append((latents.permute(3, 0, 1, 2), frames))
    return made


def test_cells_are_means_of_the_pixels_they_stand_for() -> None:
    frames = np.zeros((9, 32, 64, 3), np.uint8)
    frames[0, :8, :8] = (255, 0, 0)
    frames[5, :, 32:] = 128  # one of the eight frames of the second latent frame
    cells = cell_colours(frames, 2, 1, 2)
    assert cells.shape == (2, 1, 2, DETAIL * DETAIL * 3)
    assert cells[0, 0, 0, :6].tolist() == [1, 0, 0, 0, 0, 0]
    torch.testing.assert_close(cells[1, 0, 1], torch.full((DETAIL * DETAIL * 3,), 128 / 255 / 8))
    assert cells[1, 0, 0].abs().max() == 0


def test_a_map_that_exists_is_found_and_paints_the_clip() -> None:
    made = clips(12)
    found = fit_preview_map(made)
    assert found.correlation > 0.99
    latents, frames = made[0]
    painted = found.paint(latents[None])
    assert painted.shape == (3, 2 * DETAIL, 3 * DETAIL, 3)
    assert np.abs(painted[0].astype(int) - frames[0, ::8, ::8].astype(int)).max() <= 2
    assert fit_preview_map(clips(12, noise=30.0)).correlation < 0.9  # latents that say little
    with pytest.raises(ValueError, match="no clip"):
        fit_preview_map([])


def test_a_map_is_kept_for_its_autoencoder_alone(tmp_path: Path) -> None:
    found = fit_preview_map(clips(4))
    save_preview_map(found, tmp_path, "one")
    again = load_preview_map(tmp_path, "one")
    assert again is not None
    assert torch.equal(again.linear.weight, found.linear.weight)
    assert (again.correlation, again.cells) == (found.correlation, found.cells)
    assert load_preview_map(tmp_path, "another") is None
    assert load_preview_map(tmp_path / "missing", "one") is None
    (tmp_path / "preview_map.safetensors").write_bytes(b"torn")
    assert load_preview_map(tmp_path, "one") is None


def sources(folder: Path, samples: Sequence[Sample], read: Any, **more: Any) -> PreviewSources:
    settings: dict[str, Any] = {
        "family": FAMILY, "device": torch.device("cpu"), "folder": folder, "autoencoder": "a",
        "load_autoencoder": object, "samples": samples, "read_latents": read, "storages": {"set": LocalStorage(folder)},
    }  # fmt: skip
    return PreviewSources(**{**settings, **more})


def test_the_map_is_fitted_once_on_clips_and_cached_latents(tmp_path: Path) -> None:
    latents = {}
    samples = []
    for number, (latent, frames) in enumerate(clips(4)):
        name = f"{number}.mp4"
        write_video(tmp_path / name, frames, 25.0)
        info = probe(LocalStorage(tmp_path), name)
        sample = Sample("set", name, info, FramePlan(17, 25.0, 0.0), CropPlan(96, 64, 0, 0, 96, 64), ("",), 1)
        samples.append(sample)
        latents[name] = latent
    reads: list[str] = []

    def read(sample: Sample) -> Tensor:
        reads.append(sample.path)
        return latents[sample.path]

    decoder = open_linear(sources(tmp_path, samples, read))
    assert "linear map" in decoder.told
    assert len(reads) == 4
    pictures = decoder.paint(latents["0.mp4"][None])
    assert (pictures.frames.shape, pictures.frames_apart) == ((3, 2 * DETAIL, 3 * DETAIL, 3), 8)
    open_linear(sources(tmp_path, samples, read))
    assert len(reads) == 4  # the second start finds it
    with pytest.raises(UserError, match="no trained clip could be read"):
        open_linear(sources(tmp_path / "empty", [], read))


class Counting:
    """An autoencoder that counts what it decodes."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        self.shapes.append(tuple(latents.shape))
        return torch.zeros(1, 3, 1, 64, 96)


def test_the_whole_autoencoder_sees_two_latent_frames(tmp_path: Path) -> None:
    autoencoder = Counting()
    decoder = open_autoencoder(sources(tmp_path, [], None, load_autoencoder=lambda: autoencoder))
    pictures = decoder.paint(torch.zeros(1, 128, 16, 2, 3))
    assert autoencoder.shapes == [(1, 128, 1, 2, 3)] * 2
    assert (len(pictures.frames), pictures.frames_apart) == (2, 64)
    assert len(decoder.paint(torch.zeros(1, 128, 1, 2, 3)).frames) == 1


def test_painting_clips_what_is_too_bright() -> None:
    wild = PreviewMap(LinearMap(torch.zeros(DETAIL * DETAIL * 3, 4), torch.full((DETAIL * DETAIL * 3,), 3.0)), 1.0, 1)
    assert wild.paint(torch.zeros(1, 4, 1, 1, 1)).min() == 255
