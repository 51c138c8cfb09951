"""Streaming as the options ask for it: the same training as with everything resident, and nothing left on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.training.build import Trainable, build_trainable
from simpletuner.training.offload import scratch_folder
from simpletuner.training.self_test import refuse_deaf_layers

LOKR = LycorisFile(algo="lokr", multiplier=1.0, linear_alpha=1, full_matrix=True, factor=4)


@pytest.fixture(scope="module")
def source(miniature: Path) -> Any:
    return FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(miniature)))


@pytest.fixture
def build(source: Any) -> Callable[..., Trainable]:
    def make(lycoris: LycorisFile | None = None, precision: str = "no_change", **memory: Any) -> Trainable:
        config = SimpleNamespace(
            model=ModelSection(),
            adapter=AdapterSection(lora_type="lycoris" if lycoris else "standard", lora_rank=4, lora_dropout=0.0),
            lycoris=lycoris,
            precision=PrecisionSection(base_model_precision=precision),
            memory=MemorySection(**memory),
            optimizer=OptimizerSection(),
            schedule=ScheduleSection(),
        )
        return build_trainable(FAMILY, source, config, torch.device("cpu"), "this run")  # type: ignore[arg-type]

    return make


def train(trainable: Trainable, source: Any, steps: int = 2) -> dict[str, Tensor]:
    """A few steps of plain SGD on fixed inputs; what was trained."""
    channels, width = FAMILY.input_widths(trainable.transformer)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, channels, 2, 2, 3, generator=generator)
    text, mask = torch.randn(1, 8, width, generator=generator), torch.ones(1, 8, dtype=torch.bool)
    for _ in range(steps):
        prediction = FAMILY.predict(
            trainable.transformer, source, latents, torch.tensor([0.6]), text, mask, torch.tensor([25.0])
        )
        (prediction - latents).square().mean().backward()
        with torch.no_grad():
            for parameter in trainable.parameters.values():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    return trainable.tensors()


@pytest.mark.parametrize(
    "memory",
    [
        {"enable_group_offload": True},
        {"enable_group_offload": True, "group_offload_type": "leaf_level", "group_offload_use_stream": True},
        {"musubi_blocks_to_swap": 1},
    ],
    ids=["groups", "leaves", "swap"],
)
@pytest.mark.parametrize("lycoris", [None, LOKR], ids=["lora", "lokr"])
def test_it_trains_what_the_resident_run_trains(build, source, memory: dict[str, Any], lycoris) -> None:
    expected = train(build(lycoris), source)
    trainable = build(lycoris, **memory)
    assert trainable.streamer is not None
    trained = train(trainable, source)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained.items())
    refuse_deaf_layers(trainable, FAMILY, source, "no_change")
    trainable.close()


def test_disk_holds_the_blocks_while_the_run_lasts(build, source, tmp_path: Path) -> None:
    settings = {"enable_group_offload": True, "group_offload_to_disk_path": str(tmp_path / "spill")}
    folder = scratch_folder(MemorySection(**settings), "this run")
    assert folder is not None
    assert scratch_folder(MemorySection(**settings), "another run") != folder
    folder.mkdir(parents=True)
    (folder / "block-000.safetensors").write_bytes(b"of a start that was killed")
    trainable = build(None, "int8-quanto", **settings)
    assert len(list(folder.iterdir())) == len(trainable.transformer.transformer_blocks)
    trained = train(trainable, source)
    expected = train(build(None, "int8-quanto"), source)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained.items())
    trainable.close()
    assert list((tmp_path / "spill").iterdir()) == []


def test_captions_of_a_streamed_encoder_are_the_same(source) -> None:
    cpu, words = torch.device("cpu"), ["a red circle moves", ""]
    plain, mask = FAMILY.load_prompt_encoder(source, torch.float32, cpu).encode(words)
    encoder = FAMILY.load_prompt_encoder(source, torch.float32, cpu, streamed=True)
    for _ in range(2):
        streamed, its_mask = encoder.encode(words)
        assert torch.equal(streamed, plain)
        assert torch.equal(its_mask, mask)
