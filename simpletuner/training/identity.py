"""What makes two starts one run: the facts that a checkpoint keeps and a later start is compared with.

Torch-free, so that a check of the configuration can tell before anything is loaded that a run cannot go on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from simpletuner.core.errors import Problem, UserError

STATE_NAME: Final = "training_state.json"
# A run that differs in one of these is another run: tensors would not fit, or the draws would be others.
# All other facts may change and are told; whether the order of the clips can go on, the batches decide.
FIXED_FACTS: Final = (
    "model",
    "release",
    "model_type",
    "lora_type",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "lora_init_type",
    "use_dora",
    "lycoris_config",
    "optimizer",
    "optimizer_release_gradients",
    "seed",
    "dataset",
)
# Weights of another shape cannot begin where these have ended.
_SHAPES: Final = (
    "model",
    "release",
    "model_type",
    "lora_type",
    "lora_rank",
    "lora_targets",
    "use_dora",
    "lycoris_config",
)
FROM_WEIGHTS: Final = " (init_lora begins with the adapter of this one)"


def mixed_runs(output_dir: Path, beyond: Sequence[str], begins_at: int) -> Problem:
    """What is wrong where a run would begin below checkpoints that are there already.

    Args:
        output_dir: The run folder.
        beyond: Names of the checkpoints in the way.
        begins_at: Step after which the run would go on; negative for a fresh start.
    """
    return Problem(
        f"'{output_dir}' holds {', '.join(beyond)}, and this run would begin at step {max(begins_at, 0)}",
        "Two runs in one folder would be mixed, and the next start would continue the wrong one",
        "Set resume_from_checkpoint to latest to go on, choose another output_dir, or move these folders away",
    )


def compare_facts(name: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse what cannot continue, and tell what has changed; only facts known to both are compared.

    Args:
        name: The checkpoint's, for the messages.
        saved: Facts that it was saved with.
        current: Facts of today, as many as are known.

    Returns:
        One sentence for each fact that has changed and may.

    Raises:
        UserError: Listing every fact that must be equal and is not, with both values.
    """
    problems, told = find_changes(name, saved, current)
    if problems:
        raise UserError.of(list(problems.values()))
    return told


def find_changes(
    name: str, saved: Mapping[str, Any], current: Mapping[str, Any]
) -> tuple[dict[str, Problem], tuple[str, ...]]:
    """As `compare_facts`, but the problems are returned, each under the name of its fact."""
    now = json.loads(json.dumps(dict(current)))
    changed = {
        key: (_brief(saved[key], now[key]), _brief(now[key], saved[key]))
        for key in saved
        if key in now and saved[key] != now[key]
    }
    is_full = now.get("model_type") == "full"
    refused = {
        key: Problem(
            f"'{name}' was made with {key} {then}; this run has {today}",
            "A checkpoint continues only a run with the same model, adapter, optimizer, seed, data set and batches",
            f"Set {key} back, or start over in another output_dir{'' if key in _SHAPES or is_full else FROM_WEIGHTS}",
        )
        for key, (then, today) in changed.items()
        if key in FIXED_FACTS
    }
    return refused, tuple(
        f"{key} was {then} when '{name}' was saved; the run goes on with {today}"
        for key, (then, today) in changed.items()
        if key not in FIXED_FACTS
    )


def _brief(value: Any, other: Any) -> str:
    """A value for a message; of long lists only what the other one lacks."""
    if isinstance(value, list) and isinstance(other, list):
        own = [item for item in value if item not in other]
        named = f", among them {', '.join(map(str, own[:3]))}" if own else ""
        return f"({len(value)} names{named})"
    return str(value)
