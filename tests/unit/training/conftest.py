"""A small run that trains in milliseconds: a second, tiny family, real batches, real adapter."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpletuner.config.lycoris_file import LycorisFile
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
from simpletuner.models.ltxvideo.lora_names import find_layer
from simpletuner.models.ltxvideo.weights import to_original
from simpletuner.objectives.combined import CombinedObjective
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.objectives.prior import PriorPreservation
from simpletuner.runtime.random import draw_normal
from simpletuner.training.build import build_trainable
from simpletuner.training.readout import PendingStep, StepNumbers
from simpletuner.training.state import TrainState

CHANNELS, TEXT_WIDTH, TEXT_LENGTH = 4, 12, 6


class TinyFamily:
    """A one-block LTX-Video transformer through the same door as the real family."""

    attention_class = "LTXAttention"
    block_list = "transformer_blocks"

    def load_transformer(self, source: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
        from diffusers import LTXVideoTransformer3DModel

        torch.manual_seed(0)
        return LTXVideoTransformer3DModel(
            in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=2, attention_head_dim=8,
            cross_attention_dim=16, num_layers=1, caption_channels=TEXT_WIDTH,
        ).to(device, dtype)  # fmt: skip

    def predict(
        self, transformer: nn.Module, source: Any, noised_latents: Tensor, sigmas: Tensor, prompt_embeds: Tensor,
        prompt_mask: Tensor, frame_rates: Tensor, first_frame_sigmas: Tensor | None = None,
        cell_sigmas: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        assert first_frame_sigmas is None
        frames, height, width = noised_latents.shape[2:]
        times = sigmas if cell_sigmas is None else cell_sigmas.flatten(1)
        tokens = noised_latents.flatten(2).transpose(1, 2)
        velocity = transformer(
            tokens, prompt_embeds, 1000 * times, prompt_mask, num_frames=frames, height=height, width=width,
            return_dict=False,
        )[0]  # fmt: skip
        return velocity.transpose(1, 2).reshape(noised_latents.shape)

    def hidden_width(self, transformer: nn.Module) -> int:
        return 16

    def noise_levels(self, source: Any, steps: int, size: tuple[int, int, int]) -> Tensor:
        return torch.linspace(1, 0, steps + 1)

    def adapter_targets(self, transformer: nn.Module, choice: Any) -> list[str]:
        endings = ("to_q", "to_k", "to_v", "to_out.0")
        return [name for name, module in transformer.named_modules() if name.endswith(endings)]

    def save_adapter(self, path: Path, tensors: dict[str, Tensor], config: dict[str, Any], metadata: Any) -> None:
        from safetensors.torch import save_file

        path.parent.mkdir(exist_ok=True)
        save_file({f"transformer.{name}": tensor for name, tensor in tensors.items()}, path, metadata)

    def adapter_metadata(self, tensors: dict[str, Tensor]) -> dict[str, str]:
        return {}

    def layer_named(self, name: str) -> str | None:
        return find_layer(name)

    def original_layer(self, layer: str) -> str:
        return to_original(layer)


@dataclass
class SmallRun:
    """A state, its objective, and the facts a recipe would save with it."""

    state: TrainState
    objective: FlowMatching
    stream: BatchStream
    facts: dict[str, Any]

    def adapter(self) -> dict[str, Tensor]:
        return self.state.trainable.tensors()


def write_samples(count: int) -> list[Sample]:
    info = MediaInfo("video", 64, 64, 25.0, 9, 0.4, 0, 1.0, "h264", 1, "1")
    return [
        Sample("d", f"{number}.mp4", info, FramePlan(9, 25.0, 0.0), CropPlan(64, 64, 0, 0, 64, 64), (f"c{number}",), 1)
        for number in range(count)
    ]


def read_latents(sample: Sample) -> Tensor:
    return draw_normal((CHANNELS, 2, 2, 3), 11, "test-latents", [int(sample.path.split(".")[0])])[0]


def read_prompt(caption: str) -> tuple[Tensor, Tensor]:
    number = int(caption[1:]) if caption else 999
    mask = torch.arange(TEXT_LENGTH) < (number % TEXT_LENGTH + 1)
    return draw_normal((TEXT_LENGTH, TEXT_WIDTH), 12, "test-prompts", [number])[0], mask


def make_small_run(
    *, samples: int = 8, batch_size: int = 1, accumulation: int = 1, optimizer: str = "torch-adamw", rank: int = 4,
    dropout: float = 0.0, checkpointing: bool = False, total_steps: int = 20, seed: int = 7, prefetch: int = 0,
    flow: FlowSection | None = None, average: AverageSection | None = None, lycoris: LycorisFile | None = None,
    model: str = "tiny", device: str = "cpu", adapter: AdapterSection | None = None, full: bool = False,
    prior: Collection[int] = (), updates: dict[str, Any] | None = None, gradient_precision: Any = None,
    keeps_gradients: bool = False,
    **schedule: Any,
) -> SmallRun:  # fmt: skip
    settings = {"learning_rate": 1e-2, "lr_scheduler": "linear", "lr_warmup_steps": 3, **schedule}
    config = SimpleNamespace(
        model=ModelSection(model_type="full" if full else "lora"),
        adapter=adapter
        or AdapterSection(lora_type="lycoris" if lycoris else "standard", lora_rank=rank, lora_dropout=dropout),
        lycoris=lycoris,
        precision=PrecisionSection(mixed_precision="no", gradient_precision=gradient_precision),
        memory=MemorySection(gradient_checkpointing=checkpointing, set_grads_to_none=not keeps_gradients),
        optimizer=OptimizerSection(optimizer=optimizer, **{"grad_clip_method": "norm", **(updates or {})}),
        schedule=ScheduleSection(seed=seed, gradient_accumulation_steps=accumulation, **settings),
        average=average or AverageSection(),
    )
    family: Any = TinyFamily()
    drawn = [replace(sample, is_prior=number in prior) for number, sample in enumerate(write_samples(samples))]
    stream = BatchStream(
        drawn, read_latents, read_prompt, BatchRules(batch_size, accumulation), seed=seed, caption_dropout=0.2,
        prefetch=prefetch,
    )  # fmt: skip
    trainable = build_trainable(family, None, config, torch.device(device))  # type: ignore[arg-type]
    state = TrainState.begin(trainable, stream, config, total_steps)
    objective: Any = FlowMatching(family, None, flow or FlowSection(), seed)  # type: ignore[arg-type]
    if prior:
        objective = CombinedObjective(objective, [PriorPreservation(trainable.plain_weights)], "transformer_blocks")
    facts = {
        "model": model,
        "release": "tiny",
        "train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
    }
    return SmallRun(state, objective, stream, facts)


@pytest.fixture(scope="session")
def small_run() -> Callable[..., SmallRun]:
    """Maker of small runs; see `make_small_run` for its settings."""
    return make_small_run


@pytest.fixture(scope="session")
def poisoned() -> type[Poisoned]:
    """The objective with some samples' loss spoilt; see `Poisoned`."""
    return Poisoned


class Poisoned:
    """The objective with the loss of some draws spoilt, named by their running numbers."""

    def __init__(
        self, objective: Any, sample_numbers: int | Collection[int], spoil: Callable[[Tensor], Tensor]
    ) -> None:
        self._objective, self._spoil = objective, spoil
        self._numbers = {sample_numbers} if isinstance(sample_numbers, int) else set(sample_numbers)

    def __call__(self, transformer: Any, batch: Any, step: int) -> tuple[Any, ...]:
        (term,) = self._objective(transformer, batch, step)
        lost = [place for place, number in enumerate(batch.sample_numbers) if number in self._numbers]
        if not lost:
            return (term,)
        per_sample = term.per_sample.clone()
        per_sample[lost] = self._spoil(per_sample).sum()
        return (replace(term, value=self._spoil(term.value), per_sample=per_sample.detach()),)


class Arrival:
    """Stands for an accelerator's event: the numbers count as still on their way until waited for."""

    def __init__(self) -> None:
        self.waited = False

    def synchronize(self) -> None:
        self.waited = True


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[Arrival]:
    """Make the numbers of every step arrive late, as on an accelerator."""
    arrivals: list[Arrival] = []
    send = StepNumbers.send

    def send_late(self: StepNumbers, gradient_norm: Tensor) -> PendingStep:
        pending = send(self, gradient_norm)
        pending.arrival = Arrival()  # type: ignore[assignment]
        pending.at_source = pending.packed
        arrivals.append(pending.arrival)  # type: ignore[arg-type]
        return pending

    monkeypatch.setattr(StepNumbers, "send", send_late)
    return arrivals
