"""Compiled blocks: the numbers of the plain ones, few graphs, and everything around them as before."""

from __future__ import annotations

from collections.abc import Iterator
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

pytestmark = [
    pytest.mark.slow,  # the compiler alone takes seconds
    # The tracer looks at the gradient of every tensor it is given.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]

LOKR = LycorisFile(algo="lokr", multiplier=1.0, linear_alpha=1, full_matrix=True, factor=4)
STREAMED = {"enable_group_offload": True}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def source(miniature: Path) -> Any:
    return FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(miniature)))


def build(
    source: Any, backend: str, precision: str = "no_change", lycoris: LycorisFile | None = None, **options: Any
) -> Trainable:
    dynamic, mixed = options.pop("dynamo_dynamic", False), options.pop("mixed_precision", "bf16")
    config = SimpleNamespace(
        model=ModelSection(dynamo_backend=backend, dynamo_dynamic=dynamic, dynamo_fullgraph=backend != "no"),
        adapter=AdapterSection(lora_type="lycoris" if lycoris else "standard", lora_rank=4, lora_dropout=0.0),
        lycoris=lycoris,
        precision=PrecisionSection(base_model_precision=precision, mixed_precision=mixed),
        memory=MemorySection(**options),
        optimizer=OptimizerSection(),
        schedule=ScheduleSection(),
    )
    trainable = build_trainable(FAMILY, source, config, torch.device("cpu"), "this run")
    with torch.no_grad():  # B begins at zero, and then A has no gradient
        for parameter in trainable.parameters.values():
            parameter.add_(0.02)
    return trainable


def gradients(trainable: Trainable, source: Any, frames: int = 2) -> Tensor:
    """The gradient of every trained value for a clip of that many latent frames."""
    channels, width = FAMILY.input_widths(trainable.transformer)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, channels, frames, 2, 3, generator=generator)
    text, mask = torch.randn(1, 8, width, generator=generator), torch.arange(8).expand(1, -1) < 6
    for parameter in trainable.parameters.values():
        parameter.grad = None
    prediction = FAMILY.predict(
        trainable.transformer, source, latents, torch.tensor([0.6]), text, mask, torch.tensor([25.0])
    )
    (prediction - latents).square().mean().backward()
    return torch.cat([p.grad.float().flatten() for p in trainable.parameters.values() if p.grad is not None])


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing_blocks": 1},
        STREAMED,
        {"lycoris": LOKR},
        {"precision": "int8-torchao"},
        {"precision": "fp8-torchao"},
        {"precision": "int8dq-torchao"},
        {"precision": "fp8-native"},
        {"precision": "int8dq-torchao", **STREAMED},
        {"precision": "int8-quanto"},
        {"precision": "int8-quanto", **STREAMED},
        {"precision": "int8-torchao", **STREAMED},
    ],
    ids=lambda options: "-".join(map(str, options.values()))[:40],
)
def test_traced_blocks_give_the_same_gradients(source: Any, options: dict[str, Any]) -> None:
    """The whole way through torch.compile but the kernels."""
    expected = gradients(build(source, "no", **options), source)
    trainable = build(source, "aot_eager", **options)
    for _ in range(2):
        found = gradients(trainable, source)
    # bfloat16: the tracer takes some casts together. Where that moves an entry over a tie of e4m3, by a step of 2^-3.
    assert far(found, expected) < (6e-2 if options.get("precision") == "fp8-native" else 2e-2)
    assert trainable.compilation is not None
    assert trainable.compilation.graphs == 1
    trainable.close()


@pytest.mark.parametrize("dynamic", [False, True])
def test_no_more_graphs_than_shapes(source: Any, dynamic: bool) -> None:
    trainable = build(source, "eager", dynamo_dynamic=dynamic)
    compilation = trainable.compilation
    assert compilation is not None
    for frames in (2, 3, 4, 3, 2, 4):
        gradients(trainable, source, frames)
        with torch.no_grad():  # what is only looked at compiles nothing
            FAMILY.predict(
                trainable.transformer, source, torch.zeros(1, 128, 5, 2, 2), torch.tensor([0.5]),
                torch.zeros(1, 8, 64), torch.ones(1, 8, dtype=torch.bool), torch.tensor([25.0]),
            )  # fmt: skip
    assert compilation.graphs == (1 if dynamic else 3)
    assert f"compiled {compilation.graphs} graph" in compilation.news()
    assert compilation.news() == ""
    trainable.close()


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        # The small model's gradients are differences of large sums: in float32 the plain blocks are 2.7e-3 from those
        # in float64 themselves, and the kernels 2.0e-4 from the plain blocks.
        ({"mixed_precision": "no"}, 1e-3),
        ({"mixed_precision": "no", "gradient_checkpointing": True, **STREAMED}, 1e-3),
        ({}, 2e-2),  # bfloat16: what is computed in one kernel is rounded once
        ({"gradient_checkpointing_blocks": 1, "precision": "int8-quanto"}, 2e-2),
    ],
    ids=["float32", "float32 recomputed and streamed", "bfloat16", "int8 half recomputed"],
)
def test_kernels_give_the_same_gradients(source: Any, options: dict[str, Any], tolerance: float) -> None:
    """Generated code, for two shapes: relative distance of all gradients together."""
    plain, trainable = build(source, "no", **options), build(source, "inductor", **options)
    for frames in (2, 3):
        assert far(gradients(trainable, source, frames), gradients(plain, source, frames)) < tolerance
    assert trainable.compilation is not None
    assert trainable.compilation.graphs <= 2
    assert trainable.compilation.seconds > 0
    trainable.close()
