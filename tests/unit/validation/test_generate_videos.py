"""Every prompt at every size becomes a file, and nothing that goes wrong stops training."""

from __future__ import annotations

import gc
import importlib.util
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simpletuner.caching.prompts import PromptCache, PromptSettings, cache_prompts
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.sections.validation import ValidationSection
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted, VideoGenerated
from simpletuner.validation.generate import Studio, generate_videos, plan_jobs
from simpletuner.validation.names import Weights, video_name
from simpletuner.validation.video_file import read_video

from .conftest import NoiseFamily

PROMPTS = (ValidationPrompt("cat", "a cat"), ValidationPrompt("dog", "a dog"))


class Resident:
    """Stands for an autoencoder that takes memory; `NoiseFamily` does not decode."""


def studio_of(family: NoiseFamily, cache: PromptCache, settings: ValidationSection, **more: Any) -> Studio:
    return Studio(family.model.transformer, family, None, cache, settings, 12.5, **more)  # type: ignore[arg-type]


def generate(
    family: NoiseFamily,
    cache: PromptCache,
    settings: ValidationSection,
    folder: Path,
    events: list[Event],
    prompts: Sequence[ValidationPrompt] = PROMPTS,
    load: Any = Resident,
    step: int = 5,
    weights: Weights = "adapter",
    **more: Any,
) -> list[VideoGenerated]:
    return generate_videos(
        studio_of(family, cache, settings, **more),
        family.model.wearing,
        load,
        plan_jobs(prompts, settings, step, weights, folder),
        step=step,
        weights=weights,
        emit=events.append,
    )


def test_every_prompt_at_every_size_becomes_a_video_with_a_poster(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    settings = settings.model_copy(update={"validation_resolution": "96x64,64"})
    made = generate(family, prompt_cache, settings, tmp_path / "videos", events)
    names = {f"step_5_{nickname}_{size}" for nickname in ("cat", "dog") for size in ("96x64", "64x64")}
    assert {path.name for path in (tmp_path / "videos").iterdir()} == {
        f"{name}.{suffix}" for name in names for suffix in ("mp4", "png")
    }
    assert [event for event in events if isinstance(event, VideoGenerated)] == made
    for event in made:
        frames, rate = read_video(Path(event.path))
        assert frames.shape == (9, event.height, event.width, 3)
        assert rate == 12.5
        assert (event.step, event.weights, event.num_frames, event.seed) == (5, "adapter", 9, settings.validation_seed)


def test_requests_carry_settings_and_cached_features(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    settings = settings.model_copy(update={"validation_num_video_frames": 15})
    generate(family, prompt_cache, settings, tmp_path, events)
    request = family.requests[1]
    assert torch.equal(request.prompt_embeds, prompt_cache.read("a dog")[0])
    assert torch.equal(request.negative_embeds, prompt_cache.read(settings.validation_negative_prompt)[0])
    assert (request.num_frames, request.frame_rate, request.guidance) == (9, 12.5, settings.validation_guidance)


def test_the_base_model_is_generated_without_the_adapter(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    base = generate(family, prompt_cache, settings, tmp_path, events, weights="base", step=0)
    assert not family.model.plain
    trained = generate(family, prompt_cache, settings, tmp_path, events)
    assert Path(base[0].path).name == "base_cat_96x64.mp4"
    before, after = (read_video(Path(made[0].path))[0].mean() for made in (base, trained))
    assert after > before + 20  # the offset of the adapter makes the video brighter


def test_order_and_number_of_prompts_do_not_change_a_video(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    generate(family, prompt_cache, settings, tmp_path / "both", events)
    generate(family, prompt_cache, settings, tmp_path / "dog", events, prompts=PROMPTS[1:])
    name = "step_5_dog_96x64.mp4"
    both, alone = (read_video(tmp_path / folder / name)[0] for folder in ("both", "dog"))
    assert np.array_equal(both, alone)


def test_random_state_and_modes_are_left_as_they_were(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    generate(family, prompt_cache, settings, tmp_path, events)
    assert torch.equal(torch.rand(4), expected)
    assert torch.is_grad_enabled()
    assert family.model.transformer.training


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), torch.OutOfMemoryError("CUDA out of memory"), ValueError("8k+1")]
)
def test_a_failed_video_is_told_and_the_rest_goes_on(
    error: Exception,
    family: NoiseFamily,
    prompt_cache: PromptCache,
    settings: ValidationSection,
    tmp_path: Path,
    events: list[Event],
) -> None:
    calls = iter((error, None))
    family.fail_on = lambda request: next(calls)
    made = generate(family, prompt_cache, settings, tmp_path, events)
    assert [event.nickname for event in made] == ["dog"]
    (notice,) = [event for event in events if isinstance(event, Noticed)]
    assert notice.severity == "error"
    assert "step_5_cat_96x64.mp4" in notice.text
    assert str(error) in notice.text
    assert sorted(path.suffix for path in tmp_path.glob("step*")) == [".mp4", ".png"]


def test_faults_of_our_own_are_not_hidden(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    family.fail_on = lambda request: TypeError("a mistake in our code")
    with pytest.raises(TypeError):
        generate(family, prompt_cache, settings, tmp_path, events, weights="base")
    assert not family.model.plain


def test_a_folder_that_cannot_be_written_does_not_stop_training(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert generate(family, prompt_cache, settings, tmp_path / "file", events) == []
    assert sum(isinstance(event, Noticed) for event in events) == 2


def test_an_autoencoder_that_cannot_be_loaded_does_not_stop_training(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    def load() -> Resident:
        raise torch.OutOfMemoryError("no room")

    assert generate(family, prompt_cache, settings, tmp_path, events, load=load) == []
    assert any("no room" in event.text for event in events if isinstance(event, Noticed))
    assert isinstance(events[-1], StageFinished)


def test_the_autoencoder_is_dropped(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    alive: list[weakref.ref[Resident]] = []

    def load() -> Resident:
        resident = Resident()
        alive.append(weakref.ref(resident))
        return resident

    generate(family, prompt_cache, settings, tmp_path, events, load=load)
    gc.collect()
    assert [reference() for reference in alive] == [None]


def test_progress_counts_denoising_steps(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    generate(family, prompt_cache, settings, tmp_path, events)
    assert isinstance(events[0], StageStarted)
    assert events[0].total == 6
    assert [event.done for event in events if isinstance(event, StageAdvanced)] == [1, 2, 3, 4, 5, 6]


def test_one_frame_becomes_a_still(
    family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection, tmp_path: Path, events: list[Event]
) -> None:
    settings = settings.model_copy(update={"validation_num_video_frames": 1})
    made = generate(family, prompt_cache, settings, tmp_path / "videos", events, prompts=PROMPTS[:1])
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["step_5_cat_96x64.png"]
    assert read_video(Path(made[0].path))[0].shape == (1, 64, 96, 3)


@pytest.mark.parametrize("nickname", ["../x", "a/b", "a\\b", "/etc/x", "nul\0"])
def test_a_nickname_never_becomes_a_path(nickname: str) -> None:
    with pytest.raises(ValueError, match="not safe"):
        video_name(1, "adapter", nickname, 64, 64, 9)


@pytest.mark.skipif(
    importlib.util.find_spec("simpletuner.models.ltxvideo.miniature") is None,
    reason="the miniature checkpoint is not in this checkout",
)
def test_the_real_family_generates(
    settings: ValidationSection, tmp_path: Path, events: list[Event], miniature: Path
) -> None:
    from simpletuner.config.sections.adapter import AdapterSection
    from simpletuner.config.sections.model import ModelSection
    from simpletuner.models.adapters.lora import adapter_disabled, adapter_parameters, attach_lora
    from simpletuner.models.ltxvideo.family import FAMILY

    cpu = torch.device("cpu")
    source = FAMILY.resolve(ModelSection(model_family="ltxvideo", pretrained_model_name_or_path=str(miniature)))
    texts = ["a cat", settings.validation_negative_prompt]
    cache = cache_prompts(
        texts, PromptSettings(tmp_path / "text", source.identity("text"), 128),
        lambda: FAMILY.load_prompt_encoder(source, torch.float32, cpu), emit=events.append,
    )  # fmt: skip
    transformer = FAMILY.load_transformer(source, torch.float32, cpu)
    attach_lora(transformer, FAMILY.adapter_targets(transformer, "attention"), AdapterSection(), torch.float32, 0)
    with torch.no_grad():
        for number, parameter in enumerate(adapter_parameters(transformer).values()):
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(number))
    transformer.train()

    def wearing(weights: str) -> Any:
        return adapter_disabled(transformer) if weights == "base" else nullcontext()

    def run(weights: str, folder: str) -> np.ndarray:
        (made,) = generate_videos(
            Studio(transformer, FAMILY, source, cache, settings, 25.0),
            wearing,
            lambda: FAMILY.load_autoencoder(source, torch.float32, cpu),
            plan_jobs(PROMPTS[:1], settings, 1, weights, tmp_path / folder),  # type: ignore[arg-type]
            step=1,
            weights=weights,  # type: ignore[arg-type]
            emit=events.append,
        )
        return read_video(Path(made.path))[0]

    trained, again, base = run("adapter", "a"), run("adapter", "b"), run("base", "a")
    assert trained.shape == (9, 64, 96, 3)
    assert np.array_equal(trained, again)
    assert not np.array_equal(trained, base)
    assert transformer.training
