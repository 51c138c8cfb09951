"""Rules across options: pure functions from what was given to findings, run before anything is loaded.

Each rule names the options it reads, so that it is skipped when one of them could not be read. It
must not know files, the machine or the environment.
"""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.adapter_rules import ADAPTER_RULES
from simpletuner.config.attention_rules import ATTENTION_RULES
from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.draft import Draft, Rule, note, warning
from simpletuner.config.keeping_rules import KEEPING_RULES
from simpletuner.config.memory_rules import MEMORY_RULES
from simpletuner.config.method_rules import METHOD_RULES
from simpletuner.config.objective_rules import OBJECTIVE_RULES
from simpletuner.config.optimizer_rules import OPTIMIZER_RULES
from simpletuner.config.reporting_rules import REPORTING_RULES
from simpletuner.config.table import option_table
from simpletuner.config.validation_rules import VALIDATION_RULES
from simpletuner.config.values import show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem

COMMAND_LINE = "command line"  # the origin of overrides, see `surfaces/cli.py`


def apply_rules(draft: Draft, unreadable: frozenset[str]) -> list[Problem]:
    """All findings of the rules whose options could be read."""
    return [problem for rule in RULES if not unreadable.intersection(rule.reads) for problem in rule.check(draft)]


def _model_named(draft: Draft) -> Iterator[Problem]:
    if draft.values["model_family"] is None:
        yield Problem(
            "model_family is missing", "It says which architecture is trained", 'Write "model_family": "ltxvideo"'
        )
    if draft.values["model_type"] is None:
        yield Problem("model_type is missing", "It says what is trained", 'Write "model_type": "lora"')


def _flavour_known(draft: Draft) -> Iterator[Problem]:
    flavour, family = draft.values["model_flavour"], draft.values["model_family"]
    if flavour is None or family is None:
        return
    known = list(FAMILIES[family].checkpoints)
    if flavour not in known:
        yield Problem(
            f"model_flavour = {show(flavour)}",
            f"It must be one of: {', '.join(known)}",
            did_you_mean(flavour, known) or "Remove it, or name a checkpoint with pretrained_model_name_or_path",
            draft.place("model_flavour"),
        )
    elif draft.values["pretrained_model_name_or_path"]:
        yield note(
            f"model_flavour = {show(flavour)} only matters without pretrained_model_name_or_path",
            where=draft.place("model_flavour"),
        )


def _warm_up(draft: Draft) -> Iterator[Problem]:
    schedule, warm = draft.values["lr_scheduler"], draft.values["lr_warmup_steps"]
    steps = draft.values["max_train_steps"]
    where = draft.place("lr_warmup_steps")
    if not warm:
        return
    if schedule in ("cosine", "sine") and steps and warm >= steps:
        rate, end = draft.values["learning_rate"], draft.values["lr_end"]
        more = "equal to" if warm == steps else "above"
        yield note(
            f"lr_warmup_steps = {warm} is {more} max_train_steps: read as one {schedule} from {rate:g} to {end:g} "
            "without warm-up",
            f"The other reading, a warm-up over the whole run, would never reach {rate:g}",
            f"For a warm-up followed by a {schedule}, set lr_warmup_steps below max_train_steps",
            where,
        )
    elif schedule in ("cosine", "sine"):
        yield note(f"{warm} steps of warm-up, then the {schedule}", where=where)
    elif schedule == "constant":
        yield note(
            f"{draft.told('lr_scheduler')} with a warm-up is read as 'constant_with_warmup'",
            where=draft.place("lr_scheduler", "lr_warmup_steps"),
        )
    elif steps and warm >= steps:
        yield warning(
            f"lr_warmup_steps = {warm} is not below the {steps} steps of the run",
            f"The learning rate never reaches {draft.values['learning_rate']:g}",
            "Lower lr_warmup_steps, for example to a tenth of the run",
            where,
        )


def _end_rate(draft: Draft) -> Iterator[Problem]:
    rate, end = draft.values["learning_rate"], draft.values["lr_end"]
    if (
        draft.values["lr_scheduler"] in ("polynomial", "cosine", "cosine_with_restarts", "sine", "linear")
        and end >= rate
    ):
        yield Problem(
            f"{draft.told('lr_end', f'{end:g}')} is not below {draft.told('learning_rate', f'{rate:g}')}",
            "A decaying schedule ends lower than it begins",
            "Lower lr_end (0 is allowed)",
            draft.place("lr_end", "learning_rate", "lr_scheduler"),
        )


def _clipping(draft: Draft) -> Iterator[Problem]:
    if draft.values["max_grad_norm"] == 0:
        yield note("max_grad_norm = 0: gradients are not clipped", where=draft.place("max_grad_norm"))


def _lycoris_rank(draft: Draft) -> Iterator[Problem]:
    if draft.values["lora_type"] == "lycoris" and "lora_rank" in draft.given:
        yield note(
            f"lora_rank = {draft.values['lora_rank']} has no effect with lora_type lycoris",
            "The LyCORIS file sets the size",
            where=draft.place("lora_rank"),
        )


def _exclusions(draft: Draft) -> Iterator[Problem]:
    for name in sorted(draft.given):
        spec = option_table()[name]
        if not spec.facts.excludes or not draft.values[name] or draft.values[name] == spec.default:
            continue
        for other in spec.facts.excludes:
            value = draft.values[other]
            if other in draft.given and value and value != option_table()[other].default:
                yield Problem(
                    f"{name} = {show(draft.values[name])} and {other} = {show(value)} exclude each other",
                    "Only one of them can be used",
                    f"Remove one of them ({draft.place(other)})",
                    draft.place(name),
                )


def _precision(draft: Draft) -> Iterator[Problem]:
    optimizer = draft.values["optimizer"]
    if optimizer in OPTIMIZERS and OPTIMIZERS[optimizer].parameter_dtype == "bf16":
        if draft.values["mixed_precision"] != "no":
            return
        yield Problem(
            f"{draft.told('optimizer')} with {draft.told('mixed_precision')}",
            "This optimizer keeps its weights in bf16",
            'Set mixed_precision to "bf16", or optimizer to "torch-adamw"',
            draft.place("mixed_precision", "optimizer"),
        )


def _aspect_grid(draft: Draft) -> Iterator[Problem]:
    alignment = draft.values["aspect_bucket_alignment"]
    if alignment % 32:
        yield Problem(
            f"aspect_bucket_alignment = {alignment}", "LTX-Video wants multiples of 32", "Set it to 32 or 64",
            draft.place("aspect_bucket_alignment"),
        )  # fmt: skip


def _moving_files(draft: Draft) -> Iterator[Problem]:
    place = draft.place("delete_problematic_images")
    if draft.values["delete_problematic_images"] and place != COMMAND_LINE:
        yield note(
            "delete_problematic_images = true",
            "Nothing is ever deleted: files that cannot be decoded are left out. To move them to the trash folder of "
            "the cache, ask for it on the command line or in the data set's entry",
            where=place,
        )


RULES: tuple[Rule, ...] = (
    *METHOD_RULES,
    *KEEPING_RULES,
    *OPTIMIZER_RULES,
    *ADAPTER_RULES,
    *MEMORY_RULES,
    *ATTENTION_RULES,
    *OBJECTIVE_RULES,
    *VALIDATION_RULES,
    Rule(("model_family", "model_type"), _model_named, "both must be named"),
    Rule(("model_flavour", "model_family", "pretrained_model_name_or_path"), _flavour_known,
         "the release must be known, and only counts without a path"),
    Rule(("lr_scheduler", "lr_warmup_steps", "max_train_steps", "learning_rate", "lr_end"), _warm_up,
         "tells which reading of the warm-up is applied"),
    Rule(("lr_scheduler", "learning_rate", "lr_end"), _end_rate, "a decaying schedule ends below where it begins"),
    Rule(("max_grad_norm",), _clipping, "0 switches clipping off"),
    Rule(("lora_rank", "lora_type"), _lycoris_rank, "LyCORIS takes its size from its own file"),
    Rule((), _exclusions, "options that exclude each other"),
    Rule(("delete_problematic_images",), _moving_files, "files are moved only on an explicit request"),
    Rule(("optimizer", "mixed_precision"), _precision, "some optimizers keep their weights in bf16"),
    *REPORTING_RULES,
    Rule(("aspect_bucket_alignment",), _aspect_grid, "a multiple of 32"),
)  # fmt: skip
