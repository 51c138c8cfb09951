"""The evaluation loss of finished weights: checkpoints, adapters of elsewhere and the base model, measured alike.

The same clips, noise and noise levels as while training (`evaluating.py`), so that the numbers can be put beside those
of the run's own record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Problem, UserError
from simpletuner.events.types import Event, StageAdvanced, StageFinished, StageStarted
from simpletuner.models.adapters.weights_file import (
    BEST_FOLDER,
    TRANSFORMER_FOLDER,
    WeightsFile,
    find_weights,
    read_weights_file,
    split_strength,
)
from simpletuner.recipes.cache import open_cache_plan
from simpletuner.recipes.encode import fill_caches
from simpletuner.recipes.evaluating import build_yardstick
from simpletuner.recipes.model_in_use import use_model
from simpletuner.recipes.plan import RunPlan
from simpletuner.runtime.host import Host, allow_tf32, find_host
from simpletuner.training.build import weight_dtype
from simpletuner.validation.stable_loss import Measurement, Yardstick, measure

STAGE: Final = "evaluation"
BASE: Final = "base"


@dataclass(frozen=True)
class Candidate:
    """Weights to measure; no file means the base model."""

    name: str
    file: WeightsFile | None


@dataclass(frozen=True)
class Evaluation:
    """What was found of one candidate."""

    name: str
    found: Measurement

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "weights": self.name, "loss": self.found.loss, "losses": self.found.losses,
            "sigmas": self.found.sigmas, "by_level": dict(self.found.by_level),
        }  # fmt: skip


def find_candidates(places: Sequence[str], output_dir: Path) -> tuple[Candidate, ...]:
    """What to measure: the places named ("base", or FILE[:STRENGTH]), else all that the run in `output_dir` has left.

    Raises:
        UserError: With every place that holds nothing that can be used.
    """
    problems: list[Problem] = []
    candidates = []
    for place in places or _own_places(output_dir):
        if place == BASE:
            candidates.append(Candidate(BASE, None))
            continue
        try:
            path, strength = split_strength(place)
            candidates.append(Candidate(place, read_weights_file(path, strength)))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError.of(problems)
    return tuple(candidates)


def _own_places(output_dir: Path) -> list[str]:
    """The base model, each checkpoint, the last weights, their average and the best ones, as far as they exist."""
    steps = [(path.name.removeprefix("checkpoint-"), path) for path in output_dir.glob("checkpoint-*")]
    checkpoints = [path for step, path in sorted((int(step), path) for step, path in steps if step.isdecimal())]
    places = [BASE]
    for place in (*checkpoints, output_dir, output_dir / "ema", output_dir / BEST_FOLDER):
        try:
            find_weights(place)
        except UserError:
            continue
        places.append(str(place))
    return places


def evaluate_candidates(
    config: RunConfig, candidates: Sequence[Candidate], emit: Callable[[Event], None]
) -> list[Evaluation]:
    """Measure each candidate on the configuration's evaluation sets, in their order.

    Raises:
        UserError: If there is no such set, a candidate does not fit the model, or a clip cannot be read.
    """
    if not config.eval_datasets or config.evaluation.eval_loss_disable:
        raise UserError(
            "the configuration has nothing to measure on",
            "The loss is measured on data sets with dataset_type eval, unless eval_loss_disable is set",
            "Add such a set to the data set file",
        )
    host = find_host()
    allow_tf32(not config.precision.disable_tf32)
    config, plan = open_cache_plan(config, emit, writes=True)
    latents, prompts = fill_caches(config, replace(plan, samples=()), host, emit, all_now=True, partly=True)
    yardstick = build_yardstick(config, plan.evaluation, latents, prompts)
    if not yardstick.sets:
        raise UserError(
            "no clip of the evaluation sets can be used",
            "What was left out and why is told above and by `simpletuner data lint`",
            "Mend the clips, or add others",
        )
    total = yardstick.passes * len(candidates)
    emit(StageStarted(STAGE, "Measuring", total, "passes"))
    begun, done, evaluations = time.monotonic(), 0, []

    def advance() -> None:
        nonlocal done
        done += 1
        emit(StageAdvanced(STAGE, done))

    for candidate in candidates:
        evaluations.append(Evaluation(candidate.name, _measure(config, plan, host, candidate, yardstick, advance)))
    emit(StageFinished(STAGE, total, time.monotonic() - begun))
    return evaluations


def _measure(
    config: RunConfig,
    plan: RunPlan,
    host: Host,
    candidate: Candidate,
    yardstick: Yardstick,
    advance: Callable[[], None],
) -> Measurement:
    source = plan.source
    if candidate.file is not None and candidate.file.kind == "whole":
        source = plan.family.resolve(config.model.model_copy(update=_whole(candidate.file)))
    dtype, files = weight_dtype(config.precision), [candidate.file] if candidate.file is not None else []
    with use_model(plan.family, source, config, files, host) as model:
        return measure(model.transformer, plan.family, source, yardstick, host.device, dtype, advance)


def _whole(file: WeightsFile) -> Mapping[str, str]:
    """The options that put a whole transformer in the place of the base's."""
    inside = file.path.is_dir() and file.path.name == TRANSFORMER_FOLDER
    return {
        "pretrained_transformer_model_name_or_path": str(file.path.parent if inside else file.path),
        "pretrained_transformer_subfolder": TRANSFORMER_FOLDER if inside else "none",
    }
