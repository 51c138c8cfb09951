"""Rules about the evaluation loss: options without sets to measure, sets without a time to measure them.

It must not know files, the machine or the environment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from simpletuner.config.dataset_file import DatasetFile
from simpletuner.config.draft import Draft, note, warning
from simpletuner.config.values import show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem

INTERVALS: Final = ("eval_steps_interval", "eval_epoch_interval")
ABOUT_MEASURING: Final = (
    *INTERVALS, "eval_timesteps", "num_eval_images", "eval_dataset_pooling", "eval_early_stop_patience",
    "eval_early_stop_min_delta",
)  # fmt: skip


def check_evaluation(file: DatasetFile, draft: Draft) -> Iterator[Problem]:
    """Findings about the options of the evaluation loss and the data sets they need."""
    values = draft.values
    sets = [dataset.id for dataset in file.datasets if dataset.is_evaluation]
    given = [name for name in ABOUT_MEASURING if name in draft.given and values[name]]
    if values["eval_dataset_id"] and values["eval_dataset_id"] not in sets:
        yield _unknown_set(draft, sets)
    if values["eval_loss_disable"] or not sets:
        if given:
            why = "eval_loss_disable is set" if values["eval_loss_disable"] else "there is no data set to measure on"
            yield warning(
                f"{', '.join(given)} without effect: {why}",
                "The loss is measured on data sets with dataset_type eval, which are never trained",
                "Set eval_loss_disable to false" if values["eval_loss_disable"] else "Add one, or remove the option",
                draft.place(given[0]),
            )
        return
    if not any(values[name] for name in INTERVALS):
        yield from _only_at_the_ends(draft, sets)
    yield from _patience(draft)
    if any(dataset.trains_i2v for dataset in file.datasets if not dataset.is_evaluation) and values["ltx_i2v_prob"]:
        yield note(
            "the evaluation loss is measured both ways: as text-to-video, and with the first frame given "
            "(loss/val/<set>/i2v); the mean counts both alike",
            "A given first frame makes the rest easier, so each way is a curve of its own",
            where=draft.place(*INTERVALS),
        )


def _unknown_set(draft: Draft, sets: list[str]) -> Problem:
    name = draft.values["eval_dataset_id"]
    there = f"there {'is' if len(sets) == 1 else 'are'}: {', '.join(sets)}" if sets else "there is none"
    return Problem(
        f"eval_dataset_id = {show(name)}",
        f"It must be the id of a data set with dataset_type eval ({there})",
        did_you_mean(name, sets) or "Correct it, or remove the option",
        draft.place("eval_dataset_id"),
    )


def _only_at_the_ends(draft: Draft, sets: list[str]) -> Iterator[Problem]:
    yield note(
        f"evaluation set{'s' if len(sets) > 1 else ''} {', '.join(sets)} without eval_steps_interval: the loss is "
        "measured before the first step and after the last one only",
        fix="Set eval_steps_interval, for example to checkpoint_step_interval",
    )
    if draft.values["eval_early_stop_patience"]:
        yield Problem(
            f"{draft.told('eval_early_stop_patience')} without eval_steps_interval and eval_epoch_interval",
            "A run can stop early only where the loss is measured while it trains",
            "Set eval_steps_interval",
            draft.place("eval_early_stop_patience"),
        )


def _patience(draft: Draft) -> Iterator[Problem]:
    if draft.values["eval_early_stop_min_delta"] and not draft.values["eval_early_stop_patience"]:
        yield note(
            "eval_early_stop_min_delta without eval_early_stop_patience has no effect",
            where=draft.place("eval_early_stop_min_delta"),
        )
