"""Rules about what is trained: the kind of adapter, where it starts, the files it is read from and written to."""

from __future__ import annotations

import math
from collections.abc import Iterator

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.catalogs.precisions import is_quantized
from simpletuner.config.draft import Draft, Rule, note
from simpletuner.config.values import show
from simpletuner.core.errors import Problem

# Storage formats from which PEFT cannot get the full weights back, which DoRA reads at every step
# (seen with PEFT 0.21, Quanto 0.2.7 and bitsandbytes 0.50).
WITHOUT_DORA = ("int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto", "int8-bnb")
LORA_SHAPE = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "slider_lora_target", "lora_init_type",
              "use_dora", "peft_lora_target_modules", "lora_format")  # fmt: skip


def _trains(draft: Draft) -> str:
    """What is trained: "full", "standard" or "lycoris"."""
    return "full" if draft.values["model_type"] == "full" else str(draft.values["lora_type"])


def _dora(draft: Draft) -> Iterator[Problem]:
    if not draft.values["use_dora"] or _trains(draft) != "standard":
        return
    level, start, where = str(draft.values["base_model_precision"]), draft.values["lora_init_type"], "use_dora"
    if level in WITHOUT_DORA or level.endswith("-quanto"):
        yield Problem(
            f"use_dora = true with base_model_precision = {show(level)}",
            "DoRA needs the full weights, which this format does not give back",
            "Use int8-torchao or nf4-bnb, or set use_dora to false",
            draft.place(where),
        )
    if start in ("pissa", "olora"):
        yield Problem(
            f"use_dora = true with lora_init_type = {show(start)}",
            "DoRA measures the base weight, and this start takes a part out of it",
            'Set lora_init_type to "default", or use_dora to false',
            draft.place(where),
        )


def _start(draft: Draft) -> Iterator[Problem]:
    start, level = draft.values["lora_init_type"], draft.values["base_model_precision"]
    if start not in ("pissa", "olora") or _trains(draft) != "standard":
        return
    where = draft.place("lora_init_type")
    if is_quantized(str(level)):
        yield Problem(
            f"lora_init_type = {show(start)} with base_model_precision = {show(level)}",
            "It starts at a part of the weights, which a quantized base does not hold in full",
            'Set lora_init_type to "default", or base_model_precision to "no_change"',
            where,
        )
    if draft.values["init_lora"]:
        yield Problem(
            f"lora_init_type = {show(start)} with init_lora",
            "The file says where the adapter starts",
            "Remove one of them",
            where,
        )
    alpha, lora_rank = draft.values["lora_alpha"], draft.values["lora_rank"]
    if draft.values["lora_format"] != "diffusers" and alpha is not None and math.frexp(alpha / lora_rank)[0] != 0.5:
        yield Problem(
            f"lora_init_type = {show(start)} with lora_format = {show(draft.values['lora_format'])} and alpha / rank = "
            f"{alpha / lora_rank:g}",
            "That layout multiplies alpha / rank into the matrices, and a run could not continue exactly from them",
            "Leave lora_alpha out, or convert the finished file with `simpletuner export`",
            where,
        )
    yield note(
        f"lora_init_type = {show(start)}: the saved adapter has rank {2 * draft.values['lora_rank']}",
        "It holds the trained matrices and those it started with, so that it fits the unchanged base model",
        where=where,
    )


def _idle_settings(draft: Draft) -> Iterator[Problem]:
    kind = _trains(draft)
    # That lora_rank does nothing with LyCORIS has a rule of its own.
    idle = [name for name in LORA_SHAPE if name in draft.given and (kind == "full" or name != "lora_rank")]
    if kind != "standard" and idle:
        what = "model_type full" if kind == "full" else "lora_type lycoris"
        yield note(f"{', '.join(idle)} with {what} has no effect", where=draft.place(idle[0]))


def _full(draft: Draft) -> Iterator[Problem]:
    if _trains(draft) != "full":
        return
    level, optimizer = draft.values["base_model_precision"], draft.values["optimizer"]
    if is_quantized(str(level)):
        yield Problem(
            f"model_type = full with base_model_precision = {show(level)}",
            "All weights are trained, and quantized weights cannot be",
            'Set base_model_precision to "no_change", or model_type to "lora"',
            draft.place("base_model_precision", "model_type"),
        )
    wants_float32 = optimizer in OPTIMIZERS and OPTIMIZERS[optimizer].parameter_dtype == "fp32"
    if wants_float32 and draft.values["mixed_precision"] != "no":
        yield Problem(
            f"model_type = full with {draft.told('optimizer')} and {draft.told('mixed_precision')}",
            "The model is computed in the format its weights are trained in, and this optimizer wants float32",
            'Set optimizer to "adamw_bf16", or mixed_precision to "no"',
            draft.place("optimizer", "mixed_precision"),
        )
    if draft.values["init_lora"]:
        yield Problem(
            "model_type = full with init_lora",
            "There is no adapter that could start from a file",
            "Merge the file into the base with `simpletuner export FILE --base MODEL --merge`, and train from that",
            draft.place("init_lora"),
        )


def _going_on(draft: Draft) -> Iterator[Problem]:
    """What goes with a file to start from."""
    step, averages, start = (draft.values[name] for name in ("init_lora_step", "init_lora_ema", "init_lora"))
    for name in ("init_lora_step", "init_lora_ema"):
        if draft.values[name] and not start:
            yield Problem(
                f"{draft.told(name)} without init_lora",
                "It tells more about the file that a run starts from",
                "Set init_lora, or remove it",
                draft.place(name),
            )
    if averages and not draft.values["use_ema"]:
        yield Problem(
            f"{draft.told('init_lora_ema')} without use_ema",
            "Averaged weights go on only in a run that averages",
            "Set use_ema to true, or remove it",
            draft.place("init_lora_ema"),
        )
    last = draft.values["max_train_steps"]
    if step and last and step >= last:
        yield Problem(
            f"init_lora_step = {step} with max_train_steps = {last}",
            "The steps of the file count, so that nothing would be left to train",
            f"Raise max_train_steps above {step}, or remove init_lora_step",
            draft.place("init_lora_step"),
        )


ADAPTER_RULES: tuple[Rule, ...] = (
    Rule(("use_dora", "base_model_precision", "lora_init_type", "lora_type", "model_type"), _dora,
         "DoRA needs the full weights of the base"),
    Rule(("lora_init_type", "base_model_precision", "init_lora", "lora_rank", "lora_alpha", "lora_format", "lora_type",
          "model_type"), _start, "a start at a part of the weights needs them in full"),
    Rule(("lora_type", "model_type"), _idle_settings, "settings of a PEFT LoRA do nothing elsewhere"),
    Rule(("model_type", "base_model_precision", "optimizer", "mixed_precision", "init_lora"), _full,
         "all weights are trained in the format they are computed in"),
    Rule(("init_lora", "init_lora_step", "init_lora_ema", "use_ema", "max_train_steps"), _going_on,
         "step count and averages belong to a file"),
)  # fmt: skip
