"""Rules about a LyCORIS file and the run it is used in: storage of the base, number formats, start values.

Everything that the adapter's building would refuse is told here first, by name.
"""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.catalogs.lycoris_kinds import KINDS
from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.catalogs.precisions import is_quantized
from simpletuner.config.draft import Draft, note
from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.values import show
from simpletuner.core.errors import Problem


def check_lycoris(file: LycorisFile, draft: Draft) -> Iterator[Problem]:
    """Findings about a file in a run that trains what it says."""
    yield from _quantized(file, draft)
    yield from _narrow(file, draft)
    yield from _start(file, draft)


def _quantized(file: LycorisFile, draft: Draft) -> Iterator[Problem]:
    """Through a quantized base only kinds work that add their output to the layer's."""
    level, where = draft.values["base_model_precision"], draft.place("base_model_precision", "lycoris_config")
    if not is_quantized(str(level)):
        return
    lost = [kind for kind in file.kinds if not KINDS[kind].beside_layer]
    if lost:
        beside = [kind for kind, row in KINDS.items() if row.beside_layer]
        yield Problem(
            f"LyCORIS {', '.join(lost)} with base_model_precision = {show(level)}",
            f"Only {', '.join(beside)} work beside quantized layers; the others change the weights themselves",
            'Choose one of these, or set base_model_precision to "no_change"',
            where,
        )
    if any(group.dora_wd for group in file.groups):
        yield Problem(
            f"dora_wd = true in the LyCORIS file with base_model_precision = {show(level)}",
            "DoRA works on the layer's full weights, which this format does not hold",
            'Remove dora_wd, or set base_model_precision to "no_change"',
            where,
        )


def _narrow(file: LycorisFile, draft: Draft) -> Iterator[Problem]:
    """Kinds that build the whole weight anew round it to the format that the optimizer trains."""
    rounding = [kind for kind in file.kinds if not KINDS[kind].keeps_precision]
    optimizer = draft.values["optimizer"]
    trains_bf16 = optimizer in OPTIMIZERS and OPTIMIZERS[optimizer].parameter_dtype == "bf16"
    if rounding and trains_bf16 and draft.values["mixed_precision"] == "no":
        yield Problem(
            f"LyCORIS {', '.join(rounding)} with {draft.told('optimizer')} and mixed_precision = no",
            "The optimizer trains bfloat16, and these kinds would round the model's float32 weights to it",
            'Set mixed_precision to "bf16", or choose an optimizer that trains float32, such as torch-adamw',
            draft.place("mixed_precision", "optimizer"),
        )


def _start(file: LycorisFile, draft: Draft) -> Iterator[Problem]:
    norm, where = draft.values["init_lokr_norm"], draft.place("init_lokr_norm")
    if not norm:
        return
    if "lokr" not in file.kinds:
        yield note(f"init_lokr_norm has no effect: the LyCORIS file trains {', '.join(file.kinds)}", where=where)
    elif any(group.decompose_both for group in file.groups):
        yield Problem(
            f"init_lokr_norm = {norm:g} with decompose_both = true",
            "The first factor starts at ones, which two thin matrices cannot give and go on training",
            "Remove one of them",
            where,
        )
    if draft.values["init_lora"]:
        yield Problem(
            f"init_lokr_norm = {norm:g} with init_lora",
            "The file says where the adapter starts",
            "Remove one of them",
            where,
        )
