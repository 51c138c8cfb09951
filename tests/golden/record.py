"""The pinned run: 20 float32 steps of the real family on a small random checkpoint.

`make golden-record` writes `twenty_steps.json` anew. Do it only when a change is meant to
move the numbers, and say in the commit why they move.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers
import peft
import torch
from torch import Tensor

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
from simpletuner.models.ltxvideo.miniature import write_miniature
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.runtime.random import draw_normal
from simpletuner.training.build import build_trainable
from simpletuner.training.state import TrainState

PINNED = Path(__file__).with_name("twenty_steps.json")
STEPS = 20
TEXT_LENGTH = 16
_CAPTIONS = ("a red ball rolls", "waves at night", "a dog runs along the beach", "snow", "two birds fly")


def begin_run(
    checkpoint: Path, *, batch_size: int = 2, accumulation: int = 1, checkpointing: bool = False,
    optimizer: str = "torch-adamw", seed: int = 42, precision: str = "no", flow: FlowSection | None = None,
    one_bucket: bool = False,
) -> tuple[TrainState, FlowMatching]:  # fmt: skip
    """A fresh run over five small clips of two lengths (of one with `one_bucket`) from a checkpoint folder."""
    config = SimpleNamespace(
        model=ModelSection(),
        adapter=AdapterSection(lora_rank=4, lora_alpha=8),
        lycoris=None,
        average=AverageSection(),
        precision=PrecisionSection(mixed_precision=precision),  # type: ignore[arg-type]
        memory=MemorySection(gradient_checkpointing=checkpointing),
        optimizer=OptimizerSection(optimizer=optimizer, max_grad_norm=1.0, grad_clip_method="norm"),
        schedule=ScheduleSection(
            seed=seed,
            learning_rate=1e-3,
            lr_scheduler="cosine",
            lr_warmup_steps=4,
            lr_end=1e-5,
            max_train_steps=STEPS,
            gradient_accumulation_steps=accumulation,
        ),
    )
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(checkpoint)))
    text_width = int(json.loads((checkpoint / "transformer" / "config.json").read_text())["caption_channels"])
    stream = BatchStream(
        _plan_samples(one_bucket), _read_latents, lambda caption: _read_prompt(caption, text_width),
        BatchRules(batch_size, accumulation), seed=seed, caption_dropout=0.1, prefetch=0,
    )  # fmt: skip
    trainable = build_trainable(FAMILY, source, config, torch.device("cpu"))
    state = TrainState.begin(trainable, stream, config, STEPS)
    return state, FlowMatching(FAMILY, source, flow or FlowSection(), seed)


def _plan_samples(one_bucket: bool) -> list[Sample]:
    samples = []
    for number, caption in enumerate(_CAPTIONS):
        info = MediaInfo("video", 96, 64, 24.0, 17, 0.7, 0, 1.0, "h264", 1, "1")
        frames = FramePlan(9 if one_bucket or number < 4 else 17, 24.0, 0.0)
        samples.append(Sample("golden", f"{number}.mp4", info, frames, CropPlan(96, 64, 0, 0, 96, 64), (caption,), 1))
    return samples


def _read_latents(sample: Sample) -> Tensor:
    shape = FAMILY.grid.latent_shape(sample.crop.width, sample.crop.height, sample.frames.num_frames)
    return draw_normal(shape, 1, "golden-latents", [int(sample.path[0])])[0]


def _read_prompt(caption: str, width: int) -> tuple[Tensor, Tensor]:
    mask = torch.arange(TEXT_LENGTH) < max(len(caption.split()), 1)
    return draw_normal((TEXT_LENGTH, width), 1, f"golden-prompt/{caption}", [0])[0], mask


def run_golden(checkpoint: Path, **settings: Any) -> list[dict[str, float]]:
    """Loss and gradient norm of each step."""
    from simpletuner.training.fit import fit

    state, objective = begin_run(checkpoint, **settings)
    return [
        {"loss": event.loss, "gradient_norm": event.gradient_norm}
        for event in fit(state, objective, stop=lambda: False)
    ]


def describe_environment() -> dict[str, str]:
    """What the numbers may depend on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def record() -> None:
    """Write the pinned file anew."""
    with tempfile.TemporaryDirectory() as folder:
        steps = run_golden(write_miniature(Path(folder) / "ltx", "0.9.5", seed=0))
    document = {"environment": describe_environment(), "steps": steps}
    PINNED.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
