"""Rules about the attention kernel and about compilation."""

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


ATTENTION_RULES: tuple[Rule, ...] = (
    Rule(
        ("attention_mechanism", "mixed_precision", "base_model_precision", "base_model_default_dtype"),
        _kernel,
        "some kernels take 16-bit formats only, or have no gradient",
    ),
)
