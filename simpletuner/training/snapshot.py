"""What a run is at one moment, copied to the host so that it can be written while training goes on.

Taking a snapshot is the only part of saving for which training waits. Writing it (checks, serialising, sums, flushing,
renaming) reads nothing that is being trained. Next stop: `saver.py`, which writes in the background.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save as serialize
from torch import Tensor

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.core.errors import ExitCode, UserError
from simpletuner.core.files import staged_folder
from simpletuner.models.adapters.adapter import ADAPTER_FILE
from simpletuner.training.build import Trainable
from simpletuner.training.host_copies import HostCopies
from simpletuner.training.identity import STATE_NAME
from simpletuner.training.manifest import write_manifest
from simpletuner.training.optimizer import parameter_names
from simpletuner.training.optimizer_state import find_broken, split_state
from simpletuner.training.state import TrainState

WEIGHTS_NAME: Final = ADAPTER_FILE
OPTIMIZER_NAME: Final = "optimizer.safetensors"
PARAMETERS_NAME: Final = "parameters.safetensors"
AVERAGE_NAME: Final = "ema.safetensors"
COMPANIONS_NAME: Final = "companions.safetensors"
AVERAGE_FOLDER: Final = "ema"  # the averaged weights as a file that pipelines load
STATE_VERSION: Final = 1


@dataclass(frozen=True)
class Snapshot:
    """A run between two steps, on the host.

    Attributes:
        step: Optimizer steps done.
        trainable: How weights become a file; its parameters are not read.
        weights: The trained tensors by name, in their own number format.
        moments: The optimizer's tensors by name.
        averages: Averaged weights by name, float32; None without `use_ema`.
        companions: What objectives train beside the model, by name; None where they train nothing.
        sampled: What is generated with and exported by name, where that is not `weights`; else None.
        document: Everything that is no tensor, ready for JSON.
        copies: Says when the tensors have landed.
        texts: What the file of the weights says of itself.
    """

    step: int
    trainable: Trainable
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    averages: Mapping[str, Tensor] | None
    companions: Mapping[str, Tensor] | None
    sampled: Mapping[str, Tensor] | None
    document: Mapping[str, Any]
    copies: HostCopies
    texts: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder."""
        return f"checkpoint-{self.step}"

    @property
    def is_rolling(self) -> bool:
        """Whether it is a safety checkpoint, which has a limit of its own."""
        return bool(self.document["is_rolling"])


def take_snapshot(
    state: TrainState,
    facts: Mapping[str, Any],
    *,
    is_rolling: bool = False,
    texts: Mapping[str, str] | None = None,
) -> Snapshot:
    """Copy everything the next step depends on.

    Args:
        state: A state between two steps.
        facts: What else identifies the run: "model", "release", "train_batch_size", "gradient_accumulation_steps";
            JSON values only.
        is_rolling: Whether it is a safety checkpoint, which has a limit of its own.
        texts: What the file of the weights says of itself beside the step.

    Raises:
        UserError: If the run has diverged (exit code 5).
    """
    if state.broken:
        raise _refusal(state.step, "the run has diverged")
    copies = HostCopies()
    row = OPTIMIZERS[state.settings.optimizer]
    moments, numbers = split_state(
        state.optimizer, parameter_names(state.trainable, state.optimizer), row.group_state, copy=copies.take
    )
    return Snapshot(
        step=state.step,
        trainable=state.trainable,
        weights={name: copies.take(parameter) for name, parameter in state.trainable.parameters.items()},
        moments=moments,
        averages=None if state.average is None else state.average.tensors(copies.take),
        companions=None if state.companions is None else state.companions.tensors(copies.take),
        sampled=_take_sampled(state, copies),
        document={
            "version": STATE_VERSION,
            "step": state.step,
            "is_rolling": is_rolling,
            "batches": state.batches.state_dict(),
            "facts": {**facts, **state.facts()},
            "optimizer": numbers,
            "ema_updates": None if state.average is None else state.average.updates,
            "skipped_steps": list(state.skipped_steps),
            "rollbacks": state.rollbacks,
        },
        copies=copies,
        texts={"global_step": str(state.step), **(texts or {})},
    )


def _take_sampled(state: TrainState, copies: HostCopies) -> Mapping[str, Tensor] | None:
    pairs = state.sampled_weights()
    if pairs is None:
        return None
    names: dict[Tensor, str] = {parameter: name for name, parameter in state.trainable.parameters.items()}
    # Before the first step an optimizer may know of no average yet.
    tensors = {**state.trainable.parameters, **{names[parameter]: tensor for parameter, tensor in pairs}}
    return {name: copies.take(tensor) for name, tensor in tensors.items()}


def write_snapshot(snapshot: Snapshot, folder: Path) -> Path:
    """Save as `folder`/checkpoint-<step>, all or nothing; may run beside training.

    Raises:
        UserError: If the snapshot holds numbers that are not finite (exit code 5), or if the disk is full or
            forbidden (exit code 6). Earlier checkpoints stay.
    """
    snapshot.copies.wait()
    broken = find_broken(
        {**snapshot.weights, **snapshot.moments, **(snapshot.averages or {}), **(snapshot.companions or {})}
    )
    if broken:
        raise _refusal(snapshot.step, f"'{broken}' holds values that are no finite numbers")
    trainable, metadata = snapshot.trainable, snapshot.texts
    path = folder / snapshot.name
    with staged_folder(path) as staging:
        shown = snapshot.weights if snapshot.sampled is None else snapshot.sampled
        trainable.save_weights(staging / trainable.adapter.weights_name, metadata, shown)
        if snapshot.sampled is not None or not trainable.adapter.file_is_exact:
            _write_tensors(staging / PARAMETERS_NAME, snapshot.weights)
        _write_tensors(staging / OPTIMIZER_NAME, snapshot.moments)
        if snapshot.averages is not None:
            _write_tensors(staging / AVERAGE_NAME, snapshot.averages)
            write_average(trainable, snapshot.averages, staging, metadata)
        if snapshot.companions is not None:
            _write_tensors(staging / COMPANIONS_NAME, snapshot.companions)
        (staging / STATE_NAME).write_text(json.dumps(snapshot.document, indent=2) + "\n", encoding="utf-8")
        write_manifest(staging, snapshot.step)
    return path


def write_average(
    trainable: Trainable, averages: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]
) -> Path:
    """Write averaged weights as `folder`/ema/<weights>, in the layout of the trained ones."""
    path = folder / AVERAGE_FOLDER / trainable.adapter.weights_name
    trainable.save_weights(path, {**metadata, "weights": "exponential moving average"}, averages)
    return path


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Written by Python, not by the library: its own errors are no OSError and would hide a full disk.
    path.write_bytes(serialize(dict(tensors), metadata={"format": "pt"}))


def _refusal(step: int, found: str) -> UserError:
    return UserError(
        f"'checkpoint-{step}' is not saved: {found}",
        "Only a state that can be trained on is saved; earlier checkpoints stay as they are",
        "Start again from the last checkpoint with a lower learning_rate, or set max_grad_norm",
        exit_code=ExitCode.NUMERICS,
    )
