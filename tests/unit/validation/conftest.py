"""A small honest family for validation: its video depends on weights, prompt, size and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simpletuner.caching.prompts import PromptCache, PromptSettings, cache_prompts
from simpletuner.config.sections.validation import ValidationSection
from simpletuner.events.types import Event
from simpletuner.models.family import GenerationRequest, GenerationStep

WORDS = 6


class LengthEncoder:
    """Features that tell prompts apart: the letter codes of the prompt."""

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        codes = torch.tensor([[float(ord(c)) for c in prompt[:WORDS].ljust(WORDS)] for prompt in prompts])
        return codes[:, :, None] / 128, torch.ones(len(prompts), WORDS, dtype=torch.bool)

    def lost_words(self, prompt: str) -> str:
        return ""


class PlainModel:
    """One layer with an offset that stands for the adapter."""

    def __init__(self) -> None:
        self.transformer = nn.Sequential(nn.Linear(1, 3), nn.Dropout(0.5))
        self.offset = nn.Parameter(torch.tensor(0.25))
        self.plain = False

    @contextmanager
    def wearing(self, weights: str) -> Iterator[None]:
        self.plain = weights == "base"
        try:
            yield
        finally:
            self.plain = False


class NoiseFamily:
    """Draws noise from the seed and shifts it by the prompt and, unless plain, by the offset."""

    def __init__(self, model: PlainModel) -> None:
        self.model = model
        self.requests: list[GenerationRequest] = []
        self.fail_on: Callable[[GenerationRequest], Exception | None] = lambda request: None

    def generate(
        self,
        transformer: nn.Module,
        source: Any,
        autoencoder: Any,
        request: GenerationRequest,
        on_step: Callable[[GenerationStep], None] | None = None,
    ) -> np.ndarray:
        self.requests.append(request)
        assert not torch.is_grad_enabled()
        for done in range(1, (total := request.num_inference_steps) + 1):
            if on_step is not None:
                on_step(GenerationStep(done, total, 1 - done / total, torch.full((1, 4, 2, 2, 3), float(done))))
        torch.rand(5)  # careless on purpose: the caller must put the random state back
        error = self.fail_on(request)
        if error is not None:
            raise error
        noise = torch.rand(
            1, request.height // 32, request.width // 32, 3, generator=torch.Generator().manual_seed(request.seed)
        )
        shift = request.prompt_embeds.mean() + (0 if self.model.plain else self.model.offset)
        cells = ((noise * 0.2 + shift * 0.5).clamp(0, 1) * 255).to(torch.uint8)
        frames = cells.repeat_interleave(32, 1).repeat_interleave(32, 2)
        return frames.expand(request.num_frames, -1, -1, -1).contiguous().numpy()


@pytest.fixture
def model() -> PlainModel:
    return PlainModel()


@pytest.fixture
def family(model: PlainModel) -> NoiseFamily:
    return NoiseFamily(model)


@pytest.fixture
def settings() -> ValidationSection:
    return ValidationSection(
        validation_resolution="96x64", validation_num_video_frames=9, validation_num_inference_steps=3
    )


@pytest.fixture
def prompt_cache(tmp_path: Path, settings: ValidationSection) -> PromptCache:
    texts = ["a cat", "a dog", settings.validation_negative_prompt]
    store = PromptSettings(tmp_path / "text", "letters", WORDS)
    return cache_prompts(texts, store, LengthEncoder, emit=lambda event: None)


@pytest.fixture
def events() -> list[Event]:
    return []
