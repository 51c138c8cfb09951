"""From a base checkpoint to something that can be trained: transformer, adapter, number formats.

Knows families only by their protocol. The walk goes on in `training/state.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from simpletuner.config.catalogs.adapters import ADAPTERS
from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.catalogs.precisions import is_quantized
from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.core.errors import UserError
from simpletuner.models.adapters.adapter import Adapter
from simpletuner.models.family import ModelFamily, Source
from simpletuner.models.precision.quantize import fill_quantized, layers_to_quantize
from simpletuner.runtime.activation_offload import ActivationOffload
from simpletuner.runtime.streaming import BlockStreamer
from simpletuner.training.compilation import Compilation, compile_blocks
from simpletuner.training.offload import clear_scratch, scratch_folder, stream_blocks
from simpletuner.training.pass_limit import PassLimit
from simpletuner.training.recompute import RecomputeDial

_WEIGHT_DTYPES: Final = {"no": torch.float32, "bf16": torch.bfloat16}
_PARAMETER_DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32}


class BuildSettings(Protocol):
    """The sections of the configuration that shape a trainable model."""

    @property
    def model(self) -> ModelSection: ...
    @property
    def adapter(self) -> AdapterSection: ...
    @property
    def lycoris(self) -> LycorisFile | None: ...
    @property
    def precision(self) -> PrecisionSection: ...
    @property
    def memory(self) -> MemorySection: ...
    @property
    def optimizer(self) -> OptimizerSection: ...
    @property
    def schedule(self) -> ScheduleSection: ...


class KeptBase(Protocol):
    """A quantized base model that outlives a run; neither call ever stops it."""

    def load(self, make_shell: Callable[[], nn.Module], device: torch.device) -> nn.Module | None:
        """The model, put into an empty one; None if there is none that can be used."""

    def save(self, model: nn.Module, layers: Sequence[str]) -> None:
        """Keep a model whose `layers` were quantized."""


@dataclass(frozen=True)
class Trainable:
    """A frozen transformer with an adapter that is trained, or a transformer that is trained itself.

    Attributes:
        transformer: The base model with the adapter attached, on `device`.
        family: How to call it.
        adapter: What is trained beside it.
        parameters: The trained parameters by name, in the fixed order the optimizer sees.
        device: Where the model is computed.
        dtype: Number format of the frozen weights and of the model's inputs.
        draws_dropout: Whether the forward pass draws from torch's global generator.
        facts: What a checkpoint compares: rank, alpha, targets, number format.
        skips_layers: Whether a forward pass may leave out whole layers of the adapter, which then get no gradient.
        dial: How many blocks compute their activations again; None where nothing is trained.
        streamer: Brings blocks to the device that do not stay there; None when all stay.
        scratch: Where their weights lie on disk, if they do.
        compilation: What compiles its blocks; None where they are not compiled.
        passes: How much goes through the model at once.
    """

    transformer: nn.Module
    family: ModelFamily
    adapter: Adapter
    parameters: Mapping[str, nn.Parameter]
    device: torch.device
    dtype: torch.dtype
    draws_dropout: bool
    facts: Mapping[str, Any]
    skips_layers: bool = False
    dial: RecomputeDial | None = None
    streamer: BlockStreamer | None = None
    scratch: Path | None = None
    compilation: Compilation | None = None
    passes: PassLimit = field(default_factory=PassLimit)

    @property
    def trained_count(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def total_count(self) -> int:
        """Number of all values, frozen and trained."""
        everything = {id(p): p.numel() for p in (*self.transformer.parameters(), *self.parameters.values())}
        return sum(everything.values())

    def held_tensors(self) -> list[Tensor]:
        """Everything that lies in memory for it, frozen and trained; some of it twice."""
        return [*self.transformer.parameters(), *self.transformer.buffers(), *self.parameters.values()]

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the trained tensors on the CPU, in their own number format."""
        return {
            name: parameter.detach().to("cpu", copy=True).contiguous() for name, parameter in self.parameters.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors that `tensors` gave back, exactly."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors of a file that `save_weights` wrote in the place of the trained ones.

        Raises:
            UserError: If names or shapes differ.
        """
        self.adapter.load_file_tensors(tensors)

    def save_weights(self, path: Path, metadata: Mapping[str, str], values: Mapping[str, Tensor] | None = None) -> None:
        """Write what was trained, or `values` in its place, as the file or folder of its kind."""
        if values is not None:
            values = {name: values[name].to(parameter.dtype) for name, parameter in self.parameters.items()}
        self.adapter.save(path, metadata, values)

    def close(self) -> None:
        """Stop streaming and remove what was put on disk for it; the model is of no use afterwards."""
        if self.compilation is not None:
            self.compilation.close()
        if self.streamer is not None:
            self.streamer.close()
            clear_scratch(self.scratch)

    def plain_weights(self) -> AbstractContextManager[None]:
        """While open, the transformer computes as if it had no adapter (see `Adapter.keeps_base`)."""
        return self.adapter.disabled()


def build_trainable(
    family: ModelFamily,
    source: Source,
    config: BuildSettings,
    device: torch.device,
    scratch: str = "",
    kept: KeptBase | None = None,
) -> Trainable:
    """Load the transformer, freeze it, attach the adapter in the optimizer's number format.

    Args:
        scratch: What tells this run from others on this machine, for the name of its folder of streamed blocks.
        kept: Where a quantized base model is kept between runs; None to quantize it each time.

    Raises:
        UserError: If a target matches no layer, or the number format cannot be trained.
    """
    adapter = config.adapter
    dtype = weight_dtype(config.precision)
    # What is streamed never lies on the device whole, so everything is prepared on the CPU.
    place = torch.device("cpu") if config.memory.streams_blocks else device
    transformer = load_frozen(family, source, config.precision, dtype, place, kept)
    parameter_dtype = _PARAMETER_DTYPES[OPTIMIZERS[config.optimizer.optimizer].parameter_dtype]
    is_full = config.model.model_type == "full"
    build = ADAPTERS.load("full" if is_full else adapter.lora_type)
    attached: Adapter = build(transformer, family, adapter, config.lycoris, parameter_dtype, config.schedule.seed)
    blocks = list(transformer.get_submodule(family.block_list))  # type: ignore[call-overload]
    dial = RecomputeDial(
        transformer,
        blocks,
        config.memory.blocks_recomputed(len(blocks)),
        keeps_attention=config.memory.gradient_checkpointing_keep_attention,
        offload=ActivationOffload(device) if config.memory.gradient_checkpointing_offload_attention else None,
    )
    transformer.train()
    compilation = compile_blocks(blocks, config.model)
    streamer = None
    if config.memory.streams_blocks:
        streamer = stream_blocks(transformer, family.block_list, attached, config.memory, device, scratch)
    return Trainable(
        transformer=transformer,
        family=family,
        adapter=attached,
        parameters=attached.parameters(),
        device=device,
        dtype=dtype,
        draws_dropout=not is_full and (adapter.lora_dropout > 0 or config.lycoris is not None),
        facts={
            **attached.facts,
            "mixed_precision": config.precision.mixed_precision,
            "base_model_precision": config.precision.base_model_precision,
        },
        skips_layers=not is_full and config.lycoris is not None and config.lycoris.skips_layers,
        dial=dial,
        streamer=streamer,
        scratch=scratch_folder(config.memory, scratch),
        compilation=compilation,
        passes=PassLimit(config.memory.max_tokens_per_pass, is_whole=config.optimizer.optimizer_release_gradients),
    )


def load_frozen(
    family: ModelFamily,
    source: Source,
    precision: PrecisionSection,
    dtype: torch.dtype,
    device: torch.device,
    kept: KeptBase | None = None,
) -> nn.Module:
    """The base transformer on `device`, frozen, its blocks stored as `base_model_precision` says.

    It is quantized layer by layer as it is read; with `quantize_via` cpu on the CPU, so that the device never holds
    more than one layer twice.

    Args:
        kept: Where it is kept quantized, if it is.

    Raises:
        UserError: If a package for the precision is missing.
    """
    name = precision.base_model_precision
    if not is_quantized(name):
        return family.load_transformer(source, dtype, device).requires_grad_(False)
    if kept is not None and (loaded := kept.load(lambda: family.transformer_in_pieces(source)[0], device)) is not None:
        return loaded
    place = torch.device("cpu") if precision.quantize_via == "cpu" else device
    shell, tensors = family.transformer_in_pieces(source)
    layers = layers_to_quantize(shell, family.block_list)
    model = fill_quantized(shell, tensors, name, family.block_list, dtype=dtype, place=place, device=device)
    if kept is not None:
        kept.save(model, layers)
    return model


def weight_dtype(precision: PrecisionSection) -> torch.dtype:
    """Number format of the frozen weights.

    Raises:
        UserError: If training in this format is not built.
    """
    if precision.mixed_precision not in _WEIGHT_DTYPES:
        raise UserError(
            f"mixed_precision '{precision.mixed_precision}' cannot be trained",
            "LTX-Video overflows in fp16, and fp8 arithmetic is not built",
            "Use 'bf16', or 'no' for float32",
        )
    if is_quantized(precision.base_model_precision) and precision.base_model_default_dtype == "fp32":
        return torch.float32
    return _WEIGHT_DTYPES[precision.mixed_precision]
