"""One linear layer in Optimum-Quanto's formats: weights only, activations stay as they are."""

from __future__ import annotations

import optimum.quanto
from optimum.quanto.nn import QLinear
from torch import nn

from simpletuner.core.errors import UserError


def quantize_layer(layer: nn.Linear, *, kind: str) -> nn.Module:
    """The layer with its weight in `kind` ("qint8", "qint4"), frozen.

    Source: optimum-quanto's own steps, `quantize` and `freeze`, for a single module.
    """
    weights = optimum.quanto.qtypes[kind]
    quantized: nn.Module = QLinear.from_module(layer, weights=weights)
    quantized.freeze()  # type: ignore[operator]
    if kind == "qint4":
        _prove_kernel(quantized)
    return quantized


def _prove_kernel(layer: nn.Module) -> None:
    """Quanto compiles what unpacks 4-bit weights when they are first used; find out now whether it can.

    Raises:
        UserError: If it cannot.
    """
    try:
        layer.weight.dequantize()  # type: ignore[operator, union-attr]
    except (RuntimeError, ImportError, OSError) as error:
        raise UserError(
            f"int4-quanto cannot be used here: its kernel could not be built ({str(error).splitlines()[0]})",
            "Quanto compiles it at first use: that takes a C++ compiler, and a path of the environment without spaces",
            "Choose nf4-bnb or int8-quanto",
        ) from error
