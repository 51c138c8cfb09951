"""Between two log points nothing is read from the device: counted where it can be counted, impossible elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.average import AverageSection
from simpletuner.config.sections.flow import FlowSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.data.batch_rules import BatchRules
from simpletuner.data.batches import BatchStream
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.training.build import build_trainable
from simpletuner.training.state import TrainState
from simpletuner.training.step import take_step

# What makes a host wait for its device: a scalar that is looked at, a shape that depends on values, a comparison.
READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "item"}


class Counted(TorchDispatchMode):
    """Notes every read while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        name = func.overloadpacket.__name__
        if name in READS:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw_bf16", "torch-adamw"])
def test_a_step_reads_nothing(small_run: Callable[..., Any], late: Any, optimizer: str) -> None:
    # Batches are put together by the loader's thread, which reads what lies on the host.
    run = small_run(optimizer=optimizer, batch_size=2, accumulation=2, prefetch=2)
    take_step(run.state, run.objective)  # the first look at the weights
    with Counted() as counted:
        pending = take_step(run.state, run.objective)
    assert counted.calls > 50
    assert counted.reads == []
    with Counted() as counted:  # the counter sees reads: a number that is asked for is one
        float(torch.ones(1))
    assert counted.reads == ["_local_scalar_dense"]
    assert pending is not None
    run.stream.close()


def test_a_step_of_the_real_model_works_without_values(miniature: Path, late: Any) -> None:
    """On the meta device no tensor has values, so that whatever reads one raises, `tolist` and `cpu` too."""
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(miniature)))
    config: Any = SimpleNamespace(
        model=ModelSection(), adapter=AdapterSection(lora_rank=4, lora_dropout=0.0), average=AverageSection(),
        lycoris=None, precision=PrecisionSection(mixed_precision="bf16"),
        memory=MemorySection(gradient_checkpointing=True),
        optimizer=OptimizerSection(optimizer="torch-adamw", grad_clip_method="norm", max_grad_norm=1.0),
        schedule=ScheduleSection(lr_scheduler="constant"),
    )  # fmt: skip
    built = build_trainable(FAMILY, source, config, torch.device("cpu"))
    meta = torch.device("meta")
    built.transformer.to(meta)
    trainable = replace(built, device=meta, parameters=built.adapter.parameters())
    stream = BatchStream(
        _samples(),
        lambda sample: torch.zeros(128, 2, 2, 3),
        lambda caption: (torch.zeros(8, 64), torch.arange(8) < 5),
        BatchRules(2),
        seed=0,
        caption_dropout=0.1,
    )
    state = TrainState.begin(trainable, stream, config, 10)
    state.optimizer = torch.optim.SGD(trainable.parameters.values(), lr=0.1)  # fused kernels refuse this device
    state.movement = None  # it remembers where the weights began, and these have no values
    objective = FlowMatching(FAMILY, source, FlowSection(ltx_i2v_prob=0.5), 0)
    for _ in range(2):
        assert take_step(state, objective) is not None
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(1, device=meta).item()


def _samples() -> list[Sample]:
    info = MediaInfo("video", 96, 64, 25.0, 9, 0.4, 0, 1.0, "h264", 1, "1")
    plan, crop = FramePlan(9, 25.0, 0.0), CropPlan(96, 64, 0, 0, 96, 64)
    return [Sample("d", f"{number}.mp4", info, plan, crop, ("",), 1) for number in range(4)]
