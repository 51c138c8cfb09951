"""The quantized base model of a run, kept beside its caches: loaded if it is there, made and kept if not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from simpletuner.caching.checked_tensors import DamagedFileError
from simpletuner.caching.quantized_base import (
    FOLDER,
    QuantizedBase,
    kept_bytes,
    kept_models,
    read_notes,
    verify_kept,
)
from simpletuner.config.catalogs.precisions import is_quantized
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import UserError
from simpletuner.events.types import Event, Noticed
from simpletuner.events.wording import told_size
from simpletuner.models.family import ModelFamily, Source
from simpletuner.runtime.host import find_host
from simpletuner.training.build import weight_dtype


def kept_root(config: RunConfig) -> Path:
    """Folder of all quantized models of this configuration's caches."""
    return Path(config.caching.cache_dir or f"{config.checkpoint.output_dir}/cache") / FOLDER


def find_kept(config: RunConfig, family: ModelFamily, source: Source) -> QuantizedBase | None:
    """Where the run's quantized base is kept; None where it has none, or keeps none."""
    precision = config.precision
    if not (precision.quantized_base_cache and is_quantized(precision.base_model_precision)):
        return None
    return QuantizedBase(
        root=kept_root(config),
        identity=source.identity("transformer"),
        precision=precision.base_model_precision,
        dtype=weight_dtype(precision),
        blocks=family.block_list,
        place="cpu" if precision.quantize_via == "cpu" or config.memory.streams_blocks else find_host().device.type,
    )


def kept_for_run(
    config: RunConfig, family: ModelFamily, source: Source, emit: Callable[[Event], None]
) -> KeptForRun | None:
    """What `build_trainable` is given, and tells the run's listeners what it did."""
    base = find_kept(config, family, source)
    return None if base is None else KeptForRun(base, emit)


class KeptForRun:
    """Fulfils `training.build.KeptBase`: whatever goes wrong with the copy is told, and the run goes on without."""

    def __init__(self, base: QuantizedBase, emit: Callable[[Event], None]) -> None:
        self._base, self._emit, self._begun = base, emit, time.monotonic()

    def load(self, make_shell: Callable[[], nn.Module], device: torch.device) -> nn.Module | None:
        if not self._base.exists():
            return None
        try:
            model = self._base.load_into(make_shell(), device)
        except DamagedFileError as error:
            told = f"the quantized base model in '{self._base.folder}' is damaged and is made anew: {error}"
            self._emit(Noticed("warning", told))
            return None
        size = told_size(kept_bytes(self._base.folder))
        self._emit(Noticed("note", f"base model: {size} in {self._base.precision} loaded as it was kept, verified"))
        return model

    def save(self, model: nn.Module, layers: Sequence[str]) -> None:
        seconds = time.monotonic() - self._begun
        told = f"base model: {len(layers)} layers quantized to {self._base.precision} in {seconds:.1f} s"
        try:
            size = self._base.save(model, layers)
        except UserError as error:
            self._emit(Noticed("warning", f"{told}; not kept for the next start: {error}"))
            return
        self._emit(Noticed("note", f"{told}; kept for the next start ({told_size(size)}, quantized_base_cache)"))


def judge_kept(base: QuantizedBase | None, root: Path, *, verify: bool) -> tuple[str, list[tuple[Path, int]]]:
    """What is wrong with the wanted copy (empty when nothing is), and the copies that nothing wants with their bytes.

    Args:
        base: The wanted one; None where none is wanted.
        root: Folder of all copies.
        verify: Whether every byte of the wanted one is read.
    """
    reason = ""
    if base is not None and base.exists():
        try:
            read_notes(base.folder)
            if verify:
                verify_kept(base.folder)
        except DamagedFileError as error:
            reason = str(error)
    wanted = None if base is None else base.folder
    return reason, [(path, kept_bytes(path)) for path in kept_models(root) if path != wanted]
