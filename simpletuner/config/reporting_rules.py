"""Rules about who is told of a run, and where its results are published."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.catalogs.sinks import TRACKERS
from simpletuner.config.commands import placeholders, split_command
from simpletuner.config.comment import read_comment
from simpletuner.config.draft import Draft, Rule, note
from simpletuner.config.hub_name import read_repository
from simpletuner.config.sections.reporting import CUSTOM_TRACKER, tracker_names
from simpletuner.config.table import option_table
from simpletuner.config.values import capitalised, show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem

# Placeholders of a command that runs after an upload.
UPLOAD_VALUES = (
    "local_checkpoint_path", "global_step", "tracker_run_name", "tracker_project_name", "model_family", "model_type",
    "lora_type", "huggingface_path", "remote_checkpoint_path",
)  # fmt: skip


def _trackers(draft: Draft) -> Iterator[Problem]:
    spec = option_table()["report_to"]
    built = [*TRACKERS, "all", "none"]
    for name in tracker_names(str(draft.values["report_to"])):
        if name in built:
            continue
        reason, _, advice = spec.facts.refused_values.get(name, "").partition("; ")
        yield Problem(
            f"report_to = {show(name)}",
            f"It cannot be used: {reason}" if reason else f"There is no such tracker. Known: {', '.join(built)}",
            capitalised(advice) if reason else did_you_mean(name, built) or "Remove it",
            draft.place("report_to"),
        )


def _custom_tracker(draft: Draft) -> Iterator[Problem]:
    is_asked = CUSTOM_TRACKER in tracker_names(str(draft.values["report_to"]))
    if is_asked and not draft.values["custom_tracker"]:
        yield Problem(
            "report_to = custom-tracker without custom_tracker",
            "It names the file with the tracker's class",
            'Add "custom_tracker": "my_tracker" for custom-trackers/my_tracker.py',
            draft.place("report_to"),
        )
    if draft.values["custom_tracker"] and not is_asked:
        yield note("custom_tracker has no effect without report_to custom-tracker", where=draft.place("custom_tracker"))


def _layout(draft: Draft) -> Iterator[Problem]:
    names = tracker_names(str(draft.values["report_to"]))
    if draft.values["tracker_image_layout"] == "table" and not {"wandb", "all"} & set(names):
        yield note(
            "tracker_image_layout = table has no effect without report_to wandb",
            where=draft.place("tracker_image_layout"),
        )


def _repository(draft: Draft) -> Iterator[Problem]:
    written = draft.values["hub_model_id"]
    if not written or not written.strip():
        return
    try:
        read_repository(written)
    except ValueError as error:
        yield Problem(
            f"hub_model_id = {show(written)} cannot be a repository", str(error),
            'Write for example "my-lora" or "owner/my-lora"', draft.place("hub_model_id"),
        )  # fmt: skip
    if not (draft.values["push_to_hub"] or draft.values["push_checkpoints_to_hub"]):
        yield note(
            f"hub_model_id = {show(written)} has no effect without push_to_hub", where=draft.place("hub_model_id")
        )


def _script(draft: Draft) -> Iterator[Problem]:
    written, where = draft.values["post_upload_script"], draft.place("post_upload_script")
    if not written:
        return
    try:
        split_command(written)
    except ValueError as error:
        yield Problem(f"post_upload_script = {show(written)}: {error}", "It is a program and its arguments",
                      "Close the quotes, and name a program", where)  # fmt: skip
    for name in placeholders(written):
        if name not in UPLOAD_VALUES:
            yield Problem(f"post_upload_script: {{{name}}} is no placeholder", f"Known: {', '.join(UPLOAD_VALUES)}",
                          did_you_mean(name, list(UPLOAD_VALUES)) or "Remove it", where)  # fmt: skip
    if not any(draft.values[name] for name in ("push_to_hub", "push_checkpoints_to_hub", "publishing_config")):
        yield note("post_upload_script has no effect without an upload", where=where)


def _comment(draft: Draft) -> Iterator[Problem]:
    written = draft.values["modelspec_comment"]
    if written is None:
        return
    try:
        read_comment(written)
    except ValueError as error:
        rule, _, fix = str(error).partition(". ")
        yield Problem("modelspec_comment cannot be used", rule, fix, draft.place("modelspec_comment"))


REPORTING_RULES: tuple[Rule, ...] = (
    Rule(("report_to",), _trackers, "every tracker must be built"),
    Rule(("report_to", "custom_tracker"), _custom_tracker, "a tracker of one's own needs its file"),
    Rule(("report_to", "tracker_image_layout"), _layout, "tables are W&B's"),
    Rule(("hub_model_id", "push_to_hub", "push_checkpoints_to_hub"), _repository,
         "it must be a name the Hub takes, and only counts when something is uploaded"),
    Rule(("post_upload_script", "push_to_hub", "push_checkpoints_to_hub", "publishing_config"), _script,
         "a program with known places to fill"),
    Rule(("modelspec_comment",), _comment, "a text or lines with known places to fill"),
)  # fmt: skip
