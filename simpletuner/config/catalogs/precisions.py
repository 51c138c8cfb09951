"""How frozen weights may be stored: the values of `base_model_precision` and `text_encoder_1_precision`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simpletuner.core.catalog import Catalog


@dataclass(frozen=True)
class PrecisionRow:
    """One way to store weights.

    Attributes:
        target: Function (linear layer, **settings) -> the layer that stands in its place; empty when nothing changes.
        bytes_per_weight: Of a quantized layer, scales included.
        settings: Further arguments of that function.
        extra: Extra of the package that must be installed.
        note: What is told when it is asked for; empty for nothing.
        help: One sentence for people.
    """

    target: str
    bytes_per_weight: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: str = ""
    note: str = ""
    help: str = ""


_QUANTO = "simpletuner.models.precision.quanto:quantize_layer"
_TORCHAO = "simpletuner.models.precision.torchao:quantize_layer"
_BNB = "simpletuner.models.precision.bitsandbytes:quantize_layer"

PRECISIONS: Catalog[PrecisionRow] = Catalog(
    "precision",
    {
        "no_change": PrecisionRow("", 2.0, help="As the checkpoint is loaded: the format of mixed_precision."),
        "int8-quanto": PrecisionRow(_QUANTO, 1.0, {"kind": "qint8"}, "quanto", help="8-bit whole numbers (Quanto)."),
        "int4-quanto": PrecisionRow(_QUANTO, 0.53, {"kind": "qint4"}, "quanto", help="4-bit whole numbers (Quanto)."),
        "int8-torchao": PrecisionRow(_TORCHAO, 1.0, {"kind": "int8"}, "torchao", help="8-bit whole numbers (TorchAO)."),
        "fp8-torchao": PrecisionRow(
            _TORCHAO, 1.0, {"kind": "fp8"}, "torchao",
            note="weights are kept in fp8 and multiplied in bf16: with activations in fp8 too no gradient would pass",
            help="8-bit floating point (TorchAO), on any hardware.",
        ),
        "fp8wo-torchao": PrecisionRow(_TORCHAO, 1.0, {"kind": "fp8"}, "torchao", help="Another name of fp8-torchao."),
        "nf4-bnb": PrecisionRow(_BNB, 0.52, {"kind": "nf4"}, "bnb", help="4-bit normal float (bitsandbytes)."),
        "int8-bnb": PrecisionRow(_BNB, 1.0, {"kind": "int8"}, "bnb", help="8-bit whole numbers (bitsandbytes)."),
    },
)  # fmt: skip

# Known elsewhere, with the reason why they are not taken.
REFUSED: Mapping[str, str] = {
    "fp8-quanto": "it does not work with LTX-Video; fp8-torchao and int8-quanto do",
    "fp8uz-quanto": "it does not work with LTX-Video; fp8-torchao and int8-quanto do",
    "int2-quanto": "two bits leave nothing of the model (its output is off by 30 %)",
    "int8dq-torchao": "no gradient passes through activations in int8; use int8-torchao",
    "int8dq-int4-torchao": "no gradient passes through activations in int8; use int8-torchao",
}
