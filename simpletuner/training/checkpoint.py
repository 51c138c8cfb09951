"""Checkpoints: saving one, finding the right one, continuing from it, removing old ones.

A checkpoint is a folder `checkpoint-<step>` that appears complete or not at all, and that counts
only while its manifest verifies. What carries over to a changed run is told in
`docs/decisions/0003-checkpoints.md`. Nothing here knows the configuration as a whole.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file
from torch import Tensor

from simpletuner.core.errors import UserError
from simpletuner.core.files import retire
from simpletuner.models.adapters.full import TRANSFORMER_FOLDER
from simpletuner.training.identity import STATE_NAME, compare_facts, mixed_runs
from simpletuner.training.manifest import BrokenCheckpointError, list_checkpoints, step_of, verify_manifest
from simpletuner.training.optimizer import parameter_names
from simpletuner.training.optimizer_state import join_state
from simpletuner.training.snapshot import (
    AVERAGE_NAME,
    COMPANIONS_NAME,
    OPTIMIZER_NAME,
    PARAMETERS_NAME,
    STATE_VERSION,
    WEIGHTS_NAME,
    take_snapshot,
    write_snapshot,
)
from simpletuner.training.state import TrainState

logger = logging.getLogger(__name__)

_FILES: Final = (WEIGHTS_NAME, OPTIMIZER_NAME, STATE_NAME)
_FILES_OF_FULL: Final = (f"{TRANSFORMER_FOLDER}/config.json", OPTIMIZER_NAME, STATE_NAME)


def save_checkpoint(state: TrainState, folder: Path, *, facts: Mapping[str, Any]) -> Path:
    """Save everything the next step depends on as `folder`/checkpoint-<step>, all or nothing; returns when it stands.

    Raises:
        UserError: As `take_snapshot` and `write_snapshot` say.
    """
    return write_snapshot(take_snapshot(state, facts), folder)


def find_checkpoint(output_dir: Path, request: str | None) -> Path | None:
    """The checkpoint to continue from, or None for a fresh start.

    Args:
        output_dir: The run's output folder; need not exist.
        request: "latest" for the highest step that verifies; a path, or the name of a folder in
            `output_dir`; "none", empty or None for a fresh start.

    Raises:
        UserError: If the named checkpoint is missing or broken, or if there are checkpoints and none
            of them is whole. Starting over silently would throw the work away.
    """
    if request is None or request.strip().lower() in ("", "none"):
        return None
    if request.strip() != "latest":
        return _named_checkpoint(output_dir, request.strip())
    reasons = []
    for step, path in reversed(list_checkpoints(output_dir)):
        try:
            verify_manifest(path, step, _needed_files(path))
        except BrokenCheckpointError as error:
            reasons.append(f"{path.name}: {error}")
            logger.warning("%s is broken and is left out: %s", path, error)
            continue
        return path
    if reasons:
        raise UserError(
            f"none of the {len(reasons)} checkpoints in '{output_dir}' is whole ({'; '.join(reasons)})",
            "Continuing needs a checkpoint whose files are as they were saved",
            "Restore one from a copy, or start over in another output_dir",
        )
    return None


def delete_broken(output_dir: Path, checkpoint: Path) -> list[Path]:
    """Remove the broken checkpoints that are newer than the whole one a run goes on from; returns those removed."""
    broken = []
    for step, path in reversed(list_checkpoints(output_dir)):
        if path == checkpoint:
            break
        if not _is_whole(step, path):
            broken.append(path)
            retire(path)
    return broken


def whole_checkpoints(output_dir: Path) -> Iterator[tuple[int, Path]]:
    """Steps and folders of the checkpoints that verify, newest first; each is read when it is asked for."""
    for step, path in reversed(list_checkpoints(output_dir)):
        if _is_whole(step, path):
            yield step, path


def prune_checkpoints(
    output_dir: Path,
    limit: int,
    keep: Path | None = None,
    *,
    rolling_limit: int = 0,
    spared: Path | None = None,
) -> list[Path]:
    """Remove the oldest checkpoints until `limit` remain, and of safety checkpoints until `rolling_limit` do.

    `keep`, the one just saved, stays whatever the limit; without it the newest whole one does, even
    if broken ones are newer. If none is whole, nothing is removed. 0 keeps all. `spared` stays too and is not counted.

    Returns:
        Those removed.
    """
    found = [(step, path) for step, path in list_checkpoints(output_dir) if path != spared]
    kept = keep or next((path for _, path in whole_checkpoints(output_dir)), None)
    if kept is None:
        return []
    rolling = {path for _, path in found if _is_rolling(path)} if rolling_limit else set()
    removed = [
        *_oldest([path for _, path in found if path not in rolling], limit, kept),
        *_oldest([path for _, path in found if path in rolling], rolling_limit, kept),
    ]
    for path in removed:
        retire(path)
    return removed


def _oldest(paths: list[Path], limit: int, kept: Path) -> list[Path]:
    excess = len(paths) - limit
    return [path for path in paths if path != kept][:excess] if limit > 0 and excess > 0 else []


def _is_rolling(path: Path) -> bool:
    try:
        return bool(json.loads((path / STATE_NAME).read_text(encoding="utf-8"))["is_rolling"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # damaged, or of an earlier version


def restore(state: TrainState, checkpoint: Path, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Continue `state` from a checkpoint: weights, optimizer, position in the batches, step.

    Args:
        state: A fresh state of the same model, adapter and optimizer.
        checkpoint: Folder that `find_checkpoint` gave.
        facts: As for `save_checkpoint`.

    Returns:
        One sentence for each setting that has changed since, saying what carries over.

    Raises:
        UserError: If the checkpoint is broken, or belongs to another model, adapter, optimizer,
            seed or data set; `state` is not to be trained then.
    """
    document = read_checkpoint(checkpoint)
    notices = compare_facts(checkpoint.name, document["facts"], {**facts, **state.facts()})
    carried_over = state.batches.load_state_dict(document["batches"])
    weights = _read_weights(checkpoint, state.trainable.adapter.weights_name)
    moments = load_file(checkpoint / OPTIMIZER_NAME)
    state.trainable.load_weights(weights)
    if (checkpoint / PARAMETERS_NAME).exists():
        state.trainable.load_tensors(load_file(checkpoint / PARAMETERS_NAME))
    join_state(state.optimizer, parameter_names(state.trainable, state.optimizer), moments, document["optimizer"])
    state.step = document["step"]
    state.skipped_steps = list(document.get("skipped_steps", []))
    state.rollbacks = document.get("rollbacks", 0)
    return (
        *notices, *carried_over, *_restore_average(state, checkpoint, document),
        *_restore_companions(state, checkpoint),
    )  # fmt: skip


def _needed_files(checkpoint: Path) -> tuple[str, ...]:
    return _FILES_OF_FULL if (checkpoint / TRANSFORMER_FOLDER).is_dir() else _FILES


def _read_weights(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """The trained tensors, from one file or from all files of a folder.

    Raises:
        UserError: If the checkpoint holds weights of another kind.
    """
    path = checkpoint / name
    if not path.exists():
        raise UserError(
            f"'{checkpoint.name}' holds no {name}",
            "A checkpoint continues only a run of the same model_type",
            "Set model_type back, or start over in another output_dir",
        )
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def _restore_average(state: TrainState, checkpoint: Path, document: Mapping[str, Any]) -> tuple[str, ...]:
    updates = document.get("ema_updates")
    if state.average is None:
        return () if updates is None else ("use_ema was on and is off now: the running average is not continued",)
    if updates is None:
        # The averages were made from the start values; the trained weights are what there is to average.
        state.average.load_tensors(
            {name: parameter.detach().float().cpu() for name, parameter in state.trainable.parameters.items()}, 0
        )
        return (f"'{checkpoint.name}' holds no running average: it begins with the weights of the checkpoint",)
    state.average.load_tensors(load_file(checkpoint / AVERAGE_NAME), updates)
    return ()


def _restore_companions(state: TrainState, checkpoint: Path) -> tuple[str, ...]:
    path = checkpoint / COMPANIONS_NAME
    if state.companions is None:
        return ("what an objective trained beside the model is not continued: it is off now",) if path.exists() else ()
    if not path.exists():
        return (f"'{checkpoint.name}' holds nothing of the objective that was switched on since: it begins anew",)
    state.companions.load_tensors(load_file(path))
    return ()


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Verify a checkpoint and give its training state: "step", "batches", "facts", "optimizer".

    Raises:
        UserError: If it is broken or of another version.
    """
    step = step_of(checkpoint)
    try:
        if step is None:
            raise BrokenCheckpointError("its name is not checkpoint-<step>")
        verify_manifest(checkpoint, step, _needed_files(checkpoint))
        document: dict[str, Any] = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
        if document.get("version") != STATE_VERSION:
            raise BrokenCheckpointError(f"{STATE_NAME} has version {document.get('version')}, known is {STATE_VERSION}")
    except BrokenCheckpointError as error:
        raise UserError(
            f"checkpoint '{checkpoint}' cannot be used: {error}",
            "Continuing needs a checkpoint whose files are as they were saved",
            "Name another checkpoint, or start over in another output_dir",
        ) from error
    return document


def check_facts(checkpoint: Path, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Prove, before any weight is loaded, that a run with these facts can continue from `checkpoint`.

    Args:
        checkpoint: Folder that `find_checkpoint` gave.
        facts: As many of the facts of `FIXED_FACTS` as are known by now.

    Returns:
        One sentence for each other fact that has changed.

    Raises:
        UserError: If the checkpoint is broken, or a fact that must be equal is not.
    """
    return compare_facts(checkpoint.name, read_checkpoint(checkpoint)["facts"], facts)


def refuse_mixed_runs(output_dir: Path, checkpoint: Path | None) -> None:
    """Refuse to begin at a step below checkpoints that are already in `output_dir`.

    The next start would continue from the highest step, which is another run's.

    Raises:
        UserError: Naming the checkpoints in the way.
    """
    step = step_of(checkpoint) if checkpoint else None
    begins_at = -1 if step is None else step
    beyond = [path.name for step, path in list_checkpoints(output_dir) if step > begins_at]
    if beyond:
        raise UserError.of([mixed_runs(output_dir, beyond, begins_at)])


def _named_checkpoint(output_dir: Path, request: str) -> Path:
    path = next((p for p in (Path(request).expanduser(), output_dir / request) if p.is_dir()), None)
    if path is None:
        known = ", ".join(folder.name for _, folder in list_checkpoints(output_dir)) or "none"
        raise UserError(
            f"resume_from_checkpoint '{request}' does not exist",
            f"It must be latest, none, a path, or a folder in '{output_dir}' (there: {known})",
            "Correct the path, or use latest",
        )
    read_checkpoint(path)
    return path


def _is_whole(step: int, path: Path) -> bool:
    try:
        verify_manifest(path, step, _needed_files(path))
    except BrokenCheckpointError:
        return False
    return True
