"""Whether a run can go on from what its folder holds: asked before anything is loaded or encoded.

Torch-free. `check` and `plan` ask with what the configuration and the clips' headers tell; the run itself asks the same
once more, and the checkpoint decides in the end, when weights and batches are there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simpletuner.config.draft import Draft
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Problem, UserError
from simpletuner.data.draw_table import tabulate
from simpletuner.data.position import identify
from simpletuner.data.sample import Sample
from simpletuner.models.adapters.weights_file import read_weights_file
from simpletuner.recipes.survey import Survey, batch_rules
from simpletuner.training.identity import STATE_NAME, find_changes, mixed_runs
from simpletuner.training.manifest import list_checkpoints, newest_complete, step_of

_KINDS = {"lora": "LoRA", "lycoris": "LyCORIS adapter", "whole": "whole transformer"}


def settled_facts(config: RunConfig) -> dict[str, Any]:
    """Those facts of a run that its configuration alone decides, as its checkpoints name them."""
    return {
        "model_type": str(config.model.model_type),
        **({} if config.model.model_type == "full" else _adapter_facts(config)),
        "optimizer": config.optimizer.optimizer,
        "seed": config.schedule.seed,
    }


def _adapter_facts(config: RunConfig) -> dict[str, Any]:
    alpha = config.adapter.lora_alpha
    return {
        "lora_type": config.adapter.lora_type,
        "lora_rank": config.adapter.lora_rank,
        # An absent alpha follows the rank; one misfit is not told twice.
        **({} if alpha is None else {"lora_alpha": float(alpha)}),
        **(
            {}
            if config.lycoris is None
            else {"lycoris_config": config.lycoris.model_dump(mode="json", exclude_none=True)}
        ),
    }


def refuse_other_data(config: RunConfig, samples: Sequence[Sample], position: dict[str, int]) -> None:
    """Prove, before anything is encoded, that the data of a checkpoint are those of today.

    Args:
        config: The run.
        samples: What would be trained.
        position: What the checkpoint keeps of its batches.

    Raises:
        UserError: If the order of its draws cannot go on with these samples.
    """
    rules = batch_rules(config)
    identify(samples, rules, tabulate(samples, rules), config.schedule.seed).continue_from(position)


def examine_continuing(config: RunConfig, survey: Survey | None, draft: Draft) -> list[Problem]:
    """Why the run cannot go on from the newest checkpoint in its folder; empty if it can, or would begin anew."""
    folder, request = Path(config.checkpoint.output_dir), config.checkpoint.resume_from_checkpoint
    checkpoint = _newest(folder, request)
    step = step_of(checkpoint) if checkpoint is not None else None
    begins_at = -1 if step is None else step
    beyond = [path.name for step, path in list_checkpoints(folder) if step > begins_at]
    if beyond and (request or "").strip() != "latest":
        return [replace(mixed_runs(folder, beyond, begins_at), where=draft.place("resume_from_checkpoint"))]
    document = _read(checkpoint) if checkpoint is not None else None
    if checkpoint is None or document is None:
        return []
    changed, _ = find_changes(checkpoint.name, document["facts"], settled_facts(config))
    found = [
        replace(problem, where=draft.place(name)) if name in draft.given else problem
        for name, problem in changed.items()
    ]
    if survey is not None and not found:
        try:
            refuse_other_data(config, survey.samples, document["batches"])
        except UserError as error:
            found += (replace(problem, where=draft.place("data_backend_config")) for problem in error.problems)
    return found


def examine_start(config: RunConfig) -> list[Problem]:
    """Why the run cannot begin with the adapter of `init_lora`, as far as the header of its file tells."""
    settings = config.adapter
    if not settings.init_lora or config.model.model_type == "full" or _starts_later(config):
        return []
    try:
        file = read_weights_file(Path(settings.init_lora))
    except UserError as error:
        return list(error.problems)
    kind = "lycoris" if settings.lora_type == "lycoris" else "lora"
    if file.kind != kind:
        return [
            Problem(
                f"init_lora is a {_KINDS[file.kind]}; this run trains a {_KINDS[kind]}",
                "An adapter goes on only as what it is",
                "Name another file, or set lora_type as in the run it is from",
            )
        ]
    found = []
    others = sorted(file.ranks - {settings.lora_rank})
    if others:
        found.append(
            Problem(
                f"init_lora has rank {', '.join(map(str, others))}; this run has lora_rank {settings.lora_rank}",
                "A LoRA goes on only at its own rank",
                f"Set lora_rank to {others[0]}",
            )
        )
    if kind == "lora" and file.uses_dora != settings.use_dora:
        found.append(
            Problem(
                f"init_lora is {'a' if file.uses_dora else 'no'} DoRA; this run has use_dora {settings.use_dora}",
                "The two act differently",
                f"Set use_dora to {str(file.uses_dora).lower()}",
            )
        )
    return found


def _starts_later(config: RunConfig) -> bool:
    """Whether a checkpoint is there to go on from, which goes before `init_lora`."""
    return _newest(Path(config.checkpoint.output_dir), config.checkpoint.resume_from_checkpoint) is not None


def _newest(folder: Path, request: str | None) -> Path | None:
    """The checkpoint that `request` means, if it looks complete at a glance; None where that is not for us to say."""
    if request is None or request.strip() in ("", "none"):
        return None
    if request.strip() != "latest":
        named = next((path for path in (Path(request).expanduser(), folder / request) if path.is_dir()), None)
        return named if named is not None and step_of(named) is not None else None
    newest = newest_complete(folder)
    return None if newest is None else newest[1]


def _read(checkpoint: Path) -> dict[str, Any] | None:
    """Its training state; None if it cannot be read, which the run itself will tell."""
    try:
        document = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
        return document if isinstance(document["facts"], dict) and isinstance(document["batches"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
