"""Rules about how long a run is and what it keeps: limits that meet, commands, free space."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.commands import placeholders, read_size, split_command
from simpletuner.config.draft import Draft, Rule, note
from simpletuner.config.table import option_table
from simpletuner.config.values import show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem

# What a command can be told beside every validation option; `recipes/saving.py` fills them in.
COMMAND_VALUES = (
    "local_checkpoint_path", "global_step", "tracker_run_name", "tracker_project_name", "model_family", "model_type",
    "lora_type", "huggingface_path",
)  # fmt: skip
_COMMANDS = ("post_checkpoint_script", "disk_low_script", "validation_external_script")


def command_values() -> list[str]:
    """Names of all placeholders a command may hold."""
    return [*COMMAND_VALUES, *(name for name in option_table() if name.startswith("validation_"))]


def _length(draft: Draft) -> Iterator[Problem]:
    steps, epochs = draft.values["max_train_steps"], draft.values["num_train_epochs"]
    past, strict = draft.values["ignore_final_epochs"], draft.values["strict_epoch_limit"]
    where = draft.place("num_train_epochs")
    if not steps and not epochs:
        yield Problem(
            "max_train_steps and num_train_epochs are both 0",
            "One of them must say how long to train",
            "Set max_train_steps (for example 1000), or num_train_epochs",
            draft.place("max_train_steps", "num_train_epochs"),
        )
    elif steps and epochs and past:
        yield note(
            f"max_train_steps = {steps} ends the run; num_train_epochs = {epochs} does not (ignore_final_epochs)",
            where=where,
        )
    elif steps and epochs and strict:
        yield note(
            f"the run ends after max_train_steps = {steps} or num_train_epochs = {epochs}, whichever comes first "
            "(strict_epoch_limit)",
            where=where,
        )
    elif steps and epochs:
        yield Problem(
            f"max_train_steps = {steps} and num_train_epochs = {epochs} are both set",
            "Only one of them can end the run",
            "Set one of them to 0; or ignore_final_epochs to true so that the steps decide, or strict_epoch_limit to "
            "true so that the first to be reached does",
            where,
        )
    elif strict:
        yield note(
            "strict_epoch_limit = true has no effect: only one limit is set", where=draft.place("strict_epoch_limit")
        )


def _commands(draft: Draft) -> Iterator[Problem]:
    for option in _COMMANDS:
        text = draft.values[option]
        if not text:
            continue
        where = draft.place(option)
        try:
            split_command(text)
        except ValueError as error:
            yield Problem(
                f"{option} = {show(text)} cannot be read ({error})",
                "It is a program and its arguments, split as a shell would, but no shell runs it",
                "Close the quotes; for pipes or variables name a script file",
                where,
            )
        for name in placeholders(text):
            if name == "remote_checkpoint_path":
                yield Problem(
                    f"{option} holds {{{name}}}",
                    "Uploads go on in the background and may not have begun when the command runs",
                    "Use {local_checkpoint_path} or {huggingface_path}",
                    where,
                )
            elif name not in command_values():
                known = command_values()
                yield Problem(
                    f"{option} holds {{{name}}}",
                    f"Known are {', '.join(COMMAND_VALUES)} and every option that begins with validation_",
                    did_you_mean(name, known) or "Remove it",
                    where,
                )


def _disk(draft: Draft) -> Iterator[Problem]:
    threshold, action = draft.values["disk_low_threshold"], draft.values["disk_low_action"]
    if threshold:
        try:
            read_size(threshold)
        except ValueError:
            yield Problem(
                f"disk_low_threshold = {show(threshold)}",
                "It is a size such as 500M, 20G or 18GiB",
                "Write the free space below which to act",
                draft.place("disk_low_threshold"),
            )
    elif "disk_low_action" in draft.given or draft.values["disk_low_script"]:
        yield note(
            "disk_low_action and disk_low_script have no effect without disk_low_threshold",
            where=draft.place("disk_low_action", "disk_low_script"),
        )
    if threshold and action == "script" and not draft.values["disk_low_script"]:
        yield Problem(
            'disk_low_action = "script" without disk_low_script',
            "The command must be named",
            "Set disk_low_script, or disk_low_action to stop or wait",
            draft.place("disk_low_action"),
        )


def _intervals(draft: Draft) -> Iterator[Problem]:
    every, steps = draft.values["checkpoint_step_interval"], draft.values["max_train_steps"]
    by_other = draft.values["checkpoint_epoch_interval"] or draft.values["checkpointing_rolling_steps"]
    if steps and every > steps and "checkpoint_step_interval" in draft.given and not by_other:
        yield note(
            f"checkpoint_step_interval = {every} is above the {steps} steps of the run: only the end is saved",
            where=draft.place("checkpoint_step_interval"),
        )
    rolling = draft.values["checkpointing_rolling_steps"]
    if rolling and every and rolling >= every:
        yield note(
            f"checkpointing_rolling_steps = {rolling} is not below checkpoint_step_interval = {every}",
            "Safety checkpoints are meant to come more often than those that are kept",
            where=draft.place("checkpointing_rolling_steps"),
        )


KEEPING_RULES: tuple[Rule, ...] = (
    Rule(("max_train_steps", "num_train_epochs", "ignore_final_epochs", "strict_epoch_limit"), _length,
         "steps, epochs, or a word about which of both ends the run"),
    Rule(_COMMANDS, _commands, "a command must be readable and its placeholders known"),
    Rule(("disk_low_threshold", "disk_low_action", "disk_low_script"), _disk, "a size, and what to do below it"),
    Rule(("checkpoint_step_interval", "max_train_steps", "checkpoint_epoch_interval", "checkpointing_rolling_steps"),
         _intervals, "tells when only the end is saved, or safety checkpoints are rarer than others"),
)  # fmt: skip
