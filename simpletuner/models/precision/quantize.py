"""Stores the large layers of a frozen model in fewer bits; an adapter is attached afterwards.

Only linear layers inside repeated blocks are quantized: they hold nearly all weights, and the few
layers at the ends of the model decide its quality. Nothing here knows a family.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator

from torch import nn

from simpletuner.config.catalogs.precisions import PRECISIONS
from simpletuner.core.errors import UserError

# The kernels of all formats work on tiles; smaller or odd layers stay as they are.
GRAIN = 16


def quantize_blocks(model: nn.Module, precision: str, blocks: str, spared: str = "") -> int:
    """Replace the linear layers below `blocks` of `model` by quantized ones, in place, where they lie.

    Args:
        model: A frozen model.
        precision: A name of the catalog; "no_change" does nothing.
        blocks: Name of the list of repeated blocks ("transformer_blocks").
        spared: Last name of layers that stay as they are.

    Returns:
        How many layers were quantized.

    Raises:
        UserError: If the package behind it is not installed.
    """
    row = PRECISIONS[precision]
    if not row.target:
        return 0
    quantize_layer = _load(precision)
    chosen = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and f".{blocks}." in f".{name}" and _fits(module)
        if name.rpartition(".")[2] != spared
    ]
    with _quiet_libraries():
        for name in chosen:
            parent, _, child = name.rpartition(".")
            owner = model.get_submodule(parent)
            setattr(owner, child, quantize_layer(owner.get_submodule(child), **row.settings))
    model.requires_grad_(False)
    return len(chosen)


def _load(precision: str) -> Callable[..., nn.Module]:
    row = PRECISIONS[precision]
    try:
        with _quiet_libraries():
            function: Callable[..., nn.Module] = PRECISIONS.load(precision)
    except ImportError as error:
        raise UserError(
            f"precision {precision} needs a package that is not installed ({error.name})",
            f"It comes with the extra '{row.extra}'",
            f"pip install 'simpletuner[{row.extra}]', or set the precision to no_change",
        ) from error
    return function


def _fits(layer: nn.Linear) -> bool:
    return layer.in_features % GRAIN == 0 and layer.out_features % GRAIN == 0


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """The libraries tell of kernels they could not load for other hardware; that is no news here."""
    loggers = [logging.getLogger(name) for name in ("torchao", "bitsandbytes", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
