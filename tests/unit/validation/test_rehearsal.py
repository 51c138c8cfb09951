"""The largest video once before training, and an autoencoder that is only a visitor on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simpletuner.caching.prompts import PromptCache
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.config.sections.validation import ValidationSection
from simpletuner.core.errors import UserError
from simpletuner.validation.generate import Studio
from simpletuner.validation.rehearsal import Rehearsal, rehearse_largest
from simpletuner.validation.visiting import VisitingAutoencoder

from .conftest import NoiseFamily

CPU = torch.device("cpu")
PROMPTS = (ValidationPrompt("cat", "a cat"), ValidationPrompt("dog", "a dog"))


@pytest.fixture
def studio(family: NoiseFamily, prompt_cache: PromptCache, settings: ValidationSection) -> Studio:
    settings = settings.model_copy(update={"validation_resolution": "64x64,96x160,128x96"})
    return Studio(family.model.transformer, family, None, prompt_cache, settings, 12.5)  # type: ignore[arg-type]


def rehearse(studio: Studio, family: NoiseFamily, reserved_bytes: int = 0, **more: Any) -> Rehearsal:
    return rehearse_largest(studio, family.model.wearing, "adapter", Traveller, PROMPTS, CPU, reserved_bytes, **more)


def test_the_largest_size_gets_one_step_and_one_decoding(studio: Studio, family: NoiseFamily) -> None:
    found = rehearse(studio, family)
    request = family.requests[0]
    assert (request.width, request.height, request.num_inference_steps) == (96, 160, 1)
    assert (found.width, found.height, found.num_frames) == (96, 160, 9)
    assert found.denoising_bytes > 0
    assert found.decoding_bytes > 0
    more = rehearse(studio, family, 5000, held=[torch.zeros(300)])
    assert more.denoising_bytes == found.denoising_bytes + 5000 + 1200
    assert more.decoding_bytes == found.decoding_bytes + 5000 + 1200


def test_memory_that_training_will_need_is_held_meanwhile(studio: Studio, family: NoiseFamily) -> None:
    with pytest.raises(UserError, match="96x160 with 9 frames does not fit into memory while denoising"):
        # More than any machine has; nothing is generated beside it.
        rehearse(studio, family, reserved_bytes=1 << 60)
    assert family.requests == []


@pytest.mark.parametrize(
    ("after_a_step", "told"), [(False, "validation_guidance to 1"), (True, "Set vae_enable_tiling to true")]
)
def test_what_does_not_fit_is_an_error_with_advice(
    studio: Studio, family: NoiseFamily, after_a_step: bool, told: str
) -> None:
    make = family.generate

    def generate(*arguments: Any) -> Any:
        if after_a_step:
            return make(*arguments)
        raise torch.OutOfMemoryError("CUDA out of memory")

    family.fail_on = lambda request: torch.OutOfMemoryError("CUDA out of memory")
    family.generate = generate  # type: ignore[method-assign]
    with pytest.raises(UserError) as caught:
        rehearse(studio, family)
    assert told in caught.value.problems[0].fix


def test_other_faults_are_not_taken_for_a_lack_of_memory(studio: Studio, family: NoiseFamily) -> None:
    family.fail_on = lambda request: RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        rehearse(studio, family)


class Traveller:
    """An autoencoder that writes down where it is."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.fails = False

    def encode(self, pixels: Tensor) -> Tensor:
        self.log.append("encode")
        return pixels + 1

    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        self.log.append(f"decode {seed}")
        if self.fails:
            raise RuntimeError("no room")
        return latents * 2

    def move(self, device: torch.device) -> None:
        self.log.append(str(device))

    def drop_encoder(self) -> None:
        self.log.append("drop")

    def weights(self) -> list[Tensor]:
        return [torch.zeros(10)]


def test_a_visitor_is_there_only_while_it_works() -> None:
    traveller = Traveller()
    visitor = VisitingAutoencoder(traveller, torch.device("cuda:3"))
    assert traveller.log == ["cpu"]
    assert visitor.encode(torch.zeros(1)).item() == 1
    assert visitor.decode(torch.ones(1), seed=5).item() == 2
    assert traveller.log == ["cpu", "cuda:3", "encode", "cpu", "cuda:3", "decode 5", "cpu"]
    traveller.fails = True
    with pytest.raises(RuntimeError, match="no room"):
        visitor.decode(torch.ones(1))
    assert traveller.log[-1] == "cpu"


def test_a_moved_autoencoder_computes_the_same(miniature: Any) -> None:
    from simpletuner.config.sections.model import ModelSection
    from simpletuner.models.ltxvideo.family import FAMILY

    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(miniature)))
    autoencoder = FAMILY.load_autoencoder(source, torch.float32, CPU)
    pixels = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    expected = autoencoder.encode(pixels)
    autoencoder.move(CPU)
    assert torch.equal(autoencoder.encode(pixels), expected)
