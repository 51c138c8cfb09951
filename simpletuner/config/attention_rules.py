"""Rules about what computes: the attention kernel, and compiled blocks."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.catalogs.attention import ATTENTION
from simpletuner.config.draft import Draft, Rule, note
from simpletuner.config.values import show
from simpletuner.core.errors import Problem


def _kernel(draft: Draft) -> Iterator[Problem]:
    name = draft.values["attention_mechanism"]
    if name not in ATTENTION:
        return
    row, where = ATTENTION[name], draft.place("attention_mechanism")
    quantized = draft.values["base_model_precision"] not in ("no_change", "bf16")
    wide = draft.values["mixed_precision"] == "no" or (quantized and draft.values["base_model_default_dtype"] == "fp32")
    if row.narrow and wide:
        yield Problem(
            f"attention_mechanism = {show(name)} with weights in float32",
            "This kernel takes 16-bit formats only",
            'Set mixed_precision and base_model_default_dtype to "bf16", or attention_mechanism to "diffusers"',
            where,
        )
    if not row.trains:
        yield note(
            f"attention_mechanism = {show(name)}: training attends by PyTorch's own choice",
            "No gradient passes through this kernel; it is used where none is needed: videos, evaluation, roll-outs",
            where=where,
        )


def _compiled(draft: Draft) -> Iterator[Problem]:
    backend, where = draft.values["dynamo_backend"], draft.place("dynamo_backend")
    if backend == "no":
        idle = [name for name in _SETTINGS if name in draft.given and draft.values[name] not in (None, False)]
        if idle:
            yield note(f"{', '.join(idle)} without dynamo_backend has no effect", where=draft.place(idle[0]))
        return
    if "bnb" in str(draft.values["base_model_precision"]):
        yield Problem(
            f"{draft.told('dynamo_backend')} with {draft.told('base_model_precision')}",
            "The layers of bitsandbytes cannot be compiled",
            "Set dynamo_backend to no, or base_model_precision to int8-torchao or int8-quanto",
            where,
        )
    mode = draft.values["dynamo_mode"]
    if mode and backend != "inductor":
        yield note(f"dynamo_mode counts with dynamo_backend inductor only, not with {backend}", where=where)
    elif mode in _RECORDED:
        yield from _recorded(draft)


def _recorded(draft: Draft) -> Iterator[Problem]:
    told, where = draft.told("dynamo_mode"), draft.place("dynamo_mode")
    fix = "Set dynamo_mode to default or max-autotune-no-cudagraphs"
    if draft.values["enable_group_offload"] or draft.values["musubi_blocks_to_swap"]:
        yield Problem(
            f"{told} with streamed blocks", "A recorded graph reads weights where they were when it was recorded", fix,
            where,
        )  # fmt: skip
    if draft.values["gradient_checkpointing"]:
        yield Problem(
            f"{told} with {draft.told('gradient_checkpointing')}",
            "What is computed again in the backward pass would overwrite what a recorded graph still needs",
            f"{fix}, or gradient_checkpointing to false",
            where,
        )


# Options that count with `dynamo_backend` only, and modes that record graphs of the card.
_SETTINGS = ("dynamo_mode", "dynamo_fullgraph", "dynamo_dynamic")
_RECORDED = ("reduce-overhead", "max-autotune")

ATTENTION_RULES: tuple[Rule, ...] = (
    Rule(
        ("attention_mechanism", "mixed_precision", "base_model_precision", "base_model_default_dtype"),
        _kernel,
        "some kernels take 16-bit formats only, or have no gradient",
    ),
    Rule(
        (
            "dynamo_backend", *_SETTINGS, "base_model_precision", "enable_group_offload", "musubi_blocks_to_swap",
            "gradient_checkpointing",
        ),
        _compiled,
        "what can be compiled, and where graphs can be recorded",
    ),
)  # fmt: skip
