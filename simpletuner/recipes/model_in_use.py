"""A model with adapters that is used and not trained: loaded as for training, streamed if the options say so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.core.errors import Severity, UserError
from simpletuner.models.adapters.applied import AppliedAdapters, apply_adapters
from simpletuner.models.adapters.weights_file import WeightsFile
from simpletuner.models.family import ModelFamily, Source
from simpletuner.recipes.kernels import product_problems
from simpletuner.runtime.host import Host, release_memory
from simpletuner.training.build import load_frozen, weight_dtype
from simpletuner.training.offload import clear_scratch, scratch_folder, stream_blocks


class UseSettings(Protocol):
    """The sections of a configuration that say how a model is held in memory."""

    @property
    def precision(self) -> PrecisionSection: ...
    @property
    def memory(self) -> MemorySection: ...


@dataclass(frozen=True)
class ModelInUse:
    """A transformer on its device, or streamed to it, with its adapters."""

    transformer: nn.Module
    applied: AppliedAdapters


@contextmanager
def use_model(
    family: ModelFamily, source: Source, settings: UseSettings, files: Sequence[WeightsFile], host: Host
) -> Iterator[ModelInUse]:
    """Lend the model with the adapters of `files` at their strengths, without dropout; afterwards it is of no use.

    Raises:
        UserError: If the device cannot multiply in the base's format, files do not fit the model, or the disk of
            streamed blocks is full.
    """
    memory, precision = settings.memory, settings.precision.base_model_precision
    name = "" if host.device.type == "cpu" else host.device_name
    lacking = [*product_problems(precision, name, host.capability, "base_model_precision")]
    if any(problem.severity is Severity.ERROR for problem in lacking):
        raise UserError.of(lacking)
    # What is streamed never lies on the device whole, so everything is prepared on the CPU.
    place = torch.device("cpu") if memory.streams_blocks else host.device
    transformer = load_frozen(family, source, settings.precision, weight_dtype(settings.precision), place)
    applied = apply_adapters(transformer, family, files)
    # A folder of its own: the run that these weights are of may be training meanwhile.
    scratch = f"process {os.getpid()} of {host.device_name}"
    streamer = None
    if memory.streams_blocks:
        streamer = stream_blocks(transformer, family.block_list, applied, memory, host.device, scratch)
    try:
        with applied.shown():
            yield ModelInUse(transformer, applied)
    finally:
        if streamer is not None:
            streamer.close()
            clear_scratch(scratch_folder(memory, scratch))
        release_memory()
