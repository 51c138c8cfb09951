"""What products in 8 bits take is measured at the run's sizes, kept, told, and changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.core.errors import UserError
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.recipes.kernels import product_problems
from simpletuner.recipes.model_in_use import use_model
from simpletuner.recipes.pace import RATES_FILE
from simpletuner.recipes.product_pace import largest_pass, tell_products, told_products
from simpletuner.recipes.train import refuse_kernels
from simpletuner.runtime.host import Host
from tests.unit.recipes.test_forecast import run_of

HOST = Host(torch.device("cpu"), "CPU, 1 thread", 10**9)


def sample(width: int, height: int, frames: int) -> Sample:
    info = MediaInfo("video", width, height, 25.0, frames, frames / 25, 0, 1.0, "h264", 1, "1")
    crop = CropPlan(width, height, 0, 0, width, height)
    return Sample("a", f"{width}.mp4", info, FramePlan(frames, 25.0, 0.0), crop, ("",), 1)


def test_it_is_measured_once_at_the_size_of_the_largest_batch(tmp_path: Path) -> None:
    samples = [sample(64, 64, 9), sample(128, 64, 17)]
    config = run_of(
        tmp_path,
        precision=PrecisionSection(base_model_precision="int8dq-torchao"),
        schedule=ScheduleSection(max_train_steps=1, train_batch_size=2),
    )
    assert largest_pass(config, FAMILY, samples) == 2 * 3 * 2 * 4
    told: list[Any] = []
    state = torch.get_rng_state()
    for _ in range(2):
        tell_products(config, FAMILY, samples, 64, HOST, tmp_path, told.append)
    assert torch.equal(torch.get_rng_state(), state)  # it draws from nobody's generator
    assert told[0] == told[1]
    assert "products in int8 take" in told[0].text
    assert "(48 tokens x 64)" in told[0].text
    kept = json.loads((tmp_path / RATES_FILE).read_text())
    assert [name.split(",")[0] for name in kept] == ["int8dq-torchao / bfloat16", "int8-torchao / bfloat16"]
    assert all(share > 0 for share in kept.values())

    limited = replace(config, memory=MemorySection(max_tokens_per_pass=25))
    assert largest_pass(limited, FAMILY, samples) == 24
    weights_only = replace(config, precision=PrecisionSection(base_model_precision="int8-torchao"))
    tell_products(weights_only, FAMILY, samples, 64, HOST, tmp_path, told.append)
    assert len(told) == 2


@pytest.mark.parametrize(
    ("own", "widened", "severity", "part"),
    [
        (0.61, 1.2, "note", "take 0.61 of bfloat16's time here (2,688 tokens x 2,048)"),
        (1.4, 1.1, "warning", "base_model_precision fp8-torchao keeps the weights as small and takes 1.10"),
        (1.2, 1.9, "note", "only an unquantized base is faster"),
        (1.01, 1.0, "note", "take 1.01"),
    ],
)
def test_where_it_loses_the_faster_format_is_named(own: float, widened: float, severity: str, part: str) -> None:
    found = told_products("fp8-native", own, widened, 2688, 2048)
    assert found.severity == severity
    assert part in found.text
    compiled = told_products("fp8-native", own, widened, 2688, 2048, compiles=True)
    assert compiled.severity == "note"
    assert ("Compiled blocks, as here" in compiled.text) == (severity == "warning")
    assert ("unquantized" in found.text or "fp8-torchao" in found.text) == (own > 1.03)


def test_a_run_on_a_device_without_such_products_does_not_begin(tmp_path: Path) -> None:
    config = run_of(tmp_path, precision=PrecisionSection(base_model_precision="fp8-native"))
    refuse_kernels(config, HOST)  # a CPU computes the same numbers
    apple = Host(torch.device("mps"), "Apple GPU", 10**9)
    with pytest.raises(UserError, match="this machine has Apple GPU"):
        refuse_kernels(config, apple)
    with (
        pytest.raises(UserError, match="Use fp8-torchao"),
        use_model(FAMILY, cast("Any", None), config, (), apple),
    ):
        pass


@pytest.mark.parametrize(
    ("precision", "card", "capability", "part"),
    [
        ("fp8-native", "NVIDIA GeForce RTX 4090", (8, 9), ""),
        ("fp8-native", "NVIDIA GeForce RTX 3090", (8, 6), "has NVIDIA GeForce RTX 3090 (8.6). fp8 arithmetic needs"),
        ("fp8-native", "Apple M3 Max", (0, 0), "Use fp8-torchao, whose weights are as small"),
        ("fp8-native", "AMD Instinct MI300X", (0, 0), "of compute capability 8.9 or higher"),
        ("int8dq-torchao", "NVIDIA GeForce RTX 3090", (8, 6), ""),
        ("int8dq-torchao", "Apple M3 Max", (0, 0), ""),
        ("int8dq-torchao", "Tesla T4", (7, 5), "int8 arithmetic needs an NVIDIA card of compute capability 8.0"),
        ("int8-torchao", "Tesla T4", (7, 5), ""),
        ("no such", "Tesla T4", (7, 5), ""),
    ],
)
def test_cards_without_such_products(precision: str, card: str, capability: tuple[int, int], part: str) -> None:
    found = [str(problem) for problem in product_problems(precision, card, capability, "base_model_precision")]
    assert bool(found) == bool(part)
    assert part in " ".join(found)
