"""The memory forecast of training against the peak of live tensors in a real step, for twelve configurations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from torch import nn

from simpletuner.config.catalogs.cards import CARDS
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.flow import FlowSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.data.batch import Batch
from simpletuner.data.sample import BucketKey
from simpletuner.models.ltxvideo.architecture import AUTOENCODERS, TEXT, Architecture, TransformerShape
from simpletuner.models.ltxvideo.attention import choose_attention
from simpletuner.models.ltxvideo.cost import LTXCost
from simpletuner.models.ltxvideo.frame_times import accept_frame_times
from simpletuner.models.ltxvideo.transformer import adapter_targets
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.recipes.forecast import find_trained_part
from simpletuner.recipes.forecast_task import Task
from simpletuner.recipes.memory_forecast import UPDATED_TOGETHER, forecast_memory
from simpletuner.recipes.run_length import BucketLine, DataPlan, plan_length
from simpletuner.recipes.streaming_plan import plan_streaming
from simpletuner.runtime.machine import Machine
from simpletuner.training.build import build_trainable
from simpletuner.training.optim.buckets import BUCKET_ELEMENTS
from simpletuner.training.probe import probe_step
from tests.unit.recipes.test_forecast import run_of
from tests.unit.training.conftest import TinyFamily

SHAPE = {"num_layers": 6, "num_attention_heads": 4, "attention_head_dim": 64, "cross_attention_dim": 256,
         "caption_channels": 64}  # fmt: skip
TEXT_TOKENS = 128
LATENTS = (7, 8, 16)


class MediumFamily(TinyFamily):
    """A transformer of the real class with 6 blocks of width 256."""

    def load_transformer(self, source: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
        torch.manual_seed(0)
        return self._prepared(LTXVideoTransformer3DModel(**SHAPE).to(device, dtype))

    @staticmethod
    def _prepared(model: nn.Module) -> nn.Module:
        accept_frame_times(model)
        choose_attention(model, "diffusers")
        return model

    def predict(self, transformer: Any, source: Any, noised_latents: Any, *rest: Any, **more: Any) -> Any:
        dtype = transformer.proj_in.weight.dtype
        sigmas, embeds, *others = rest
        return super().predict(transformer, source, noised_latents.to(dtype), sigmas, embeds.to(dtype), *others,
                               **more).float()  # fmt: skip

    def adapter_targets(self, transformer: nn.Module, choice: Any) -> list[str]:
        return adapter_targets(transformer, choice)

    def transformer_in_pieces(self, source: Any) -> Any:
        model = self.load_transformer(source, torch.float32, torch.device("cpu"))
        with torch.device("meta"):
            shell = LTXVideoTransformer3DModel(**SHAPE)
        return self._prepared(shell), iter(model.state_dict().items())


CASES: dict[str, dict[str, Any]] = {
    "float32, nothing recomputed": {"precision": {"mixed_precision": "no"}, "blocks": 0},
    "float32, half": {"precision": {"mixed_precision": "no"}, "blocks": 3},
    "float32, all": {"precision": {"mixed_precision": "no"}, "blocks": 6},
    "float32, all layers, nothing": {"precision": {"mixed_precision": "no"}, "blocks": 0, "targets": "all"},
    "bf16, nothing recomputed": {"blocks": 0, "optimizer": "adamw_bf16"},
    "bf16, half": {"blocks": 3, "optimizer": "adamw_bf16"},
    "bf16, all": {"blocks": 6, "optimizer": "adamw_bf16"},
    "bf16, all layers, rank 64": {"blocks": 0, "optimizer": "adamw_bf16", "targets": "all", "rank": 64},
    "bf16, two clips, sums": {"blocks": 2, "optimizer": "adamw_bf16", "clips": 2, "accumulation": 2},
    "bf16 and float32 adapter": {"blocks": 0, "optimizer": "torch-adamw"},
    "full, all recomputed": {"blocks": 6, "optimizer": "adamw_bf16", "full": True},
    "8 bits, half": {"blocks": 3, "optimizer": "adamw_bf16", "precision": {"base_model_precision": "int8-quanto"}},
    "8 bits multiplied, nothing": {
        "blocks": 0,
        "optimizer": "adamw_bf16",
        "precision": {"base_model_precision": "int8dq-torchao"},
    },
    "8 bits multiplied, all": {
        "blocks": 6,
        "optimizer": "adamw_bf16",
        "precision": {"base_model_precision": "int8dq-torchao"},
    },
    "fp8 multiplied, half": {
        "blocks": 3,
        "optimizer": "adamw_bf16",
        "precision": {"base_model_precision": "fp8-native"},
    },
}


def measure_and_forecast(
    folder: Path, case: dict[str, Any], limit_bytes: float = 0.0, tell: Callable[[str], None] = len
) -> tuple[int, float]:
    """Peak of live tensors in one real step, and the forecast without the driver's share."""
    optimizer, clips = case.get("optimizer", "torch-adamw"), case.get("clips", 1)
    sections: dict[str, Any] = {
        "model": ModelSection(
            model_family="ltxvideo", model_type="full" if case.get("full") else "lora", model_flavour="0.9.5"
        ),
        "adapter": AdapterSection(lora_rank=case.get("rank", 16), lora_targets=case.get("targets", "attention")),
        "precision": PrecisionSection(**case.get("precision", {})),
        "memory": MemorySection(gradient_checkpointing_blocks=case["blocks"]),
        "optimizer": OptimizerSection(optimizer=optimizer),
        "schedule": ScheduleSection(
            max_train_steps=10, train_batch_size=clips, gradient_accumulation_steps=case.get("accumulation", 1)
        ),
    }
    config = replace(run_of(folder, **sections), model=sections["model"])
    family: Any = MediumFamily()
    trainable = build_trainable(family, SimpleNamespace(), config, torch.device("cpu"))  # type: ignore[arg-type]
    frames, height, width = LATENTS
    bucket = BucketKey(width * 32, height * 32, frames * 8 - 7)
    generator = torch.Generator().manual_seed(1)
    batch = Batch(
        latents=torch.randn(clips, 128, *LATENTS, generator=generator), bucket=bucket,
        prompt_embeds=torch.randn(clips, TEXT_TOKENS, 64, generator=generator),
        prompt_mask=torch.ones(clips, TEXT_TOKENS, dtype=torch.bool), frame_rates=torch.full((clips,), 25.0),
        sample_numbers=tuple(range(clips)), sample_names=("a",) * clips, captions=("",) * clips, share=1.0,
        ends_step=True, epoch=1,
    )  # fmt: skip
    objective = FlowMatching(family, None, FlowSection(), 7)  # type: ignore[arg-type]
    found = probe_step(trainable, objective, None, batch, config, 10, limit_bytes=limit_bytes, tell=tell)

    cost = LTXCost(Architecture("", "", TransformerShape.of(SHAPE), AUTOENCODERS["C"], TEXT))
    line = BucketLine(bucket, 2, 2, 2, (128, *LATENTS), math.prod(LATENTS), 2, clips)
    data = DataPlan((line,), (), 0, (), (), (), 2, 2, is_assumed=True)
    machine = Machine("", 0.0, (0, 0), 16e9, 2)
    trained = find_trained_part(config, cost)
    task = Task(
        config, cost, trained, data, plan_length(config, data), machine, plan_streaming(config.memory, cost, trained)
    )
    parts = forecast_memory(task, CARDS["cpu"]).phases["training"]
    print({part: round(size / 1e6, 1) for part, size in parts.items()})
    return found.peak_bytes, sum(size for part, size in parts.items() if part != "context")


def test_the_plan_knows_what_is_updated_together() -> None:
    assert UPDATED_TOGETHER == BUCKET_ELEMENTS


@pytest.mark.slow
def test_a_budget_turns_the_dial(tmp_path: Path) -> None:
    """What the largest batch takes above a budget of one's own is a reason to recompute more, before step 1."""
    whole, _ = measure_and_forecast(tmp_path, CASES["float32, nothing recomputed"])
    told: list[str] = []
    measured, _ = measure_and_forecast(tmp_path, CASES["float32, nothing recomputed"], 0.8 * whole, told.append)
    assert measured < 0.8 * whole
    assert "of 6 blocks are computed again in the backward pass" in told[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_forecast_is_within_a_tenth(name: str, tmp_path: Path) -> None:
    measured, forecast = measure_and_forecast(tmp_path, CASES[name])
    assert forecast == pytest.approx(measured, rel=0.1)
