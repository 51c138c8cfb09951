"""What a run leaves on the disk: checkpoints while it trains, its weights at the end."""

from __future__ import annotations

import time
from pathlib import Path

from simpletuner.events.types import CheckpointSaved
from simpletuner.recipes.facts import run_facts, weights_metadata
from simpletuner.recipes.session import Session
from simpletuner.training.checkpoint import prune_checkpoints, save_average, save_checkpoint


def save(session: Session) -> int:
    """Write a checkpoint, remove the oldest beyond the limit; returns the step saved."""
    started = time.monotonic()
    step = session.state.step
    path = save_checkpoint(session.state, session.folder, facts=run_facts(session.config, session.plan))
    prune_checkpoints(session.folder, session.config.checkpoint.checkpoints_total_limit, keep=path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    session.run.emit(CheckpointSaved(step, str(path), time.monotonic() - started, size))
    return step


def export(session: Session) -> Path:
    """Write the trained adapter where users look for it: the root of the run folder."""
    path = weights_path(session)
    session.trainable.save_weights(path, weights_metadata(session))
    if session.state.average is not None:
        save_average(session.state, session.folder, weights_metadata(session))
    return path


def weights_path(session: Session) -> Path:
    """File or folder of the trained weights in the run folder."""
    return session.folder / session.trainable.adapter.weights_name
