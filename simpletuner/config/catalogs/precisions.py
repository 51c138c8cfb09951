"""How frozen weights may be stored: the values of `base_model_precision` and `text_encoder_1_precision`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simpletuner.core.catalog import Catalog

# The kernels of all formats work on tiles; smaller or odd layers stay as they are.
GRAIN = 16


@dataclass(frozen=True)
class PrecisionRow:
    """One way to store weights.

    Attributes:
        target: Class of `models/precision/storage.py`'s kind; empty where no layer is stored in fewer bits.
        bits: Of one weight.
        row_bytes: For each row (output) of a layer: its scale, its zero.
        group: Weights that share a scale below the row, 0 for none; group_bytes: what these take.
        layer_bytes: For each layer.
        settings: Arguments of that class.
        extra: Extra of the package that must be installed.
        note: What is told when it is asked for; empty for nothing.
        help: One sentence for people.
        multiplies: Format that activations and gradients are rounded to and multiplied in ("int8", "fp8"); empty
            where only weights are stored in fewer bits.
        weight_only: Precision with weights as small that multiplies in 16 bits.
        capability: CUDA compute capability that its products need; (0, 0) for any.
    """

    target: str
    bits: int
    row_bytes: int = 0
    group: int = 0
    group_bytes: float = 0.0
    layer_bytes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: str = ""
    note: str = ""
    help: str = ""
    multiplies: str = ""
    weight_only: str = ""
    capability: tuple[int, int] = (0, 0)


_QUANTO = "simpletuner.models.precision.quanto:Quanto"
_TORCHAO = "simpletuner.models.precision.torchao:TorchAO"
_ROWS = "simpletuner.models.precision.row_scales:RowScales"
_BNB = "simpletuner.models.precision.bitsandbytes:BitsAndBytes"

_ROUNDED = (
    "activations and gradients are rounded to {} too, one scale for each token; a measurement at the "
    "start tells whether that is faster here"
)

PRECISIONS: Catalog[PrecisionRow] = Catalog(
    "precision",
    {
        "no_change": PrecisionRow("", 16, help="As the checkpoint is loaded: the format of mixed_precision."),
        "bf16": PrecisionRow("", 16, help="bfloat16; with mixed_precision bf16 the same as no_change."),
        # A scale in bfloat16 for each row.
        "int8-quanto": PrecisionRow(
            _QUANTO, 8, row_bytes=2, settings={"kind": "qint8"}, extra="quanto", help="8-bit whole numbers (Quanto).",
        ),
        # A scale and a shift in bfloat16 for each 128 weights of a row.
        "int4-quanto": PrecisionRow(
            _QUANTO, 4, group=128, group_bytes=4, settings={"kind": "qint4"}, extra="quanto",
            help="4-bit whole numbers (Quanto).",
        ),
        # A scale in float32 and a zero of one byte for each row.
        "int8-torchao": PrecisionRow(
            _TORCHAO, 8, row_bytes=5, settings={"kind": "int8"}, extra="torchao",
            help="8-bit whole numbers (TorchAO).",
        ),
        "fp8-torchao": PrecisionRow(
            _TORCHAO, 8, row_bytes=4, settings={"kind": "fp8"}, extra="torchao",
            note="weights are kept in fp8 and multiplied in bf16 on every machine; fp8-native multiplies in fp8",
            help="8-bit floating point (TorchAO), on any hardware.",
        ),
        "fp8wo-torchao": PrecisionRow(
            _TORCHAO, 8, row_bytes=4, settings={"kind": "fp8"}, extra="torchao", help="Another name of fp8-torchao.",
        ),
        # A scale in float32 for each row. Stored by this program itself: it needs neither package.
        "int8dq-torchao": PrecisionRow(
            _ROWS, 8, row_bytes=4, settings={"kind": "int8"}, multiplies="int8", weight_only="int8-torchao",
            capability=(8, 0),
            note=_ROUNDED.format("int8"),
            help="8-bit whole numbers, multiplied as such.",
        ),
        "fp8-native": PrecisionRow(
            _ROWS, 8, row_bytes=4, settings={"kind": "fp8"}, multiplies="fp8", weight_only="fp8-torchao",
            capability=(8, 9),
            note=_ROUNDED.format("fp8"),
            help="8-bit floating point, multiplied as such by NVIDIA cards from compute capability 8.9 on.",
        ),
        # A scale of one byte for each 64 weights, one of these in float32 for each 256 of them, two tables.
        "nf4-bnb": PrecisionRow(
            _BNB, 4, group=64, group_bytes=1 + 4 / 256, layer_bytes=(16 + 256) * 4, settings={"kind": "nf4"},
            extra="bnb", help="4-bit normal float (bitsandbytes).",
        ),
        "int8-bnb": PrecisionRow(
            _BNB, 8, row_bytes=4, settings={"kind": "int8"}, extra="bnb", help="8-bit whole numbers (bitsandbytes).",
        ),
    },
)  # fmt: skip

# Known elsewhere, with the reason why they are not taken.
REFUSED: Mapping[str, str] = {
    "fp8-quanto": "it does not work with LTX-Video; fp8-torchao and int8-quanto do",
    "fp8uz-quanto": "it does not work with LTX-Video; fp8-torchao and int8-quanto do",
    "int2-quanto": "two bits leave nothing of the model (its output is off by 30 %)",
    "int8dq-int4-torchao": "no gradient passes through its products; use int8dq-torchao, or nf4-bnb for 4 bits",
    "fp8-int4-torchao": "no gradient passes through its products; use fp8-native, or nf4-bnb for 4 bits",
    "fp8-transformerengine": "fp8-native multiplies in the same format without another package; use fp8-native",
}

_CAPTIONS_ONCE = "captions are encoded once, and rounding what T5 computes would save no time worth its errors; use "
REFUSED_FOR_TEXT: Mapping[str, str] = {
    name: f"{_CAPTIONS_ONCE}{PRECISIONS[name].weight_only}" for name in PRECISIONS if PRECISIONS[name].multiplies
}


def stored_bytes(name: str, inputs: int, outputs: int, value_bytes: float) -> float:
    """Bytes of the weight of a linear layer that a precision may store in fewer bits.

    Args:
        name: The precision; what is no precision stores nothing in fewer bits.
        inputs, outputs: Of the layer; the weight is [outputs, inputs].
        value_bytes: Of one value that is not stored in fewer bits.
    """
    if name not in PRECISIONS or not PRECISIONS[name].target or inputs % GRAIN or outputs % GRAIN:
        return inputs * outputs * value_bytes
    row, count = PRECISIONS[name], inputs * outputs
    groups = math.ceil(count / row.group) if row.group else 0
    return count * row.bits / 8 + outputs * row.row_bytes + groups * row.group_bytes + row.layer_bytes


def is_quantized(name: str) -> bool:
    """Whether a precision stores layers in fewer bits than they are computed in; also for names that are refused."""
    return bool(PRECISIONS[name].target) if name in PRECISIONS else True
