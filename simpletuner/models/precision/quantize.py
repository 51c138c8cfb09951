"""Stores the large layers of a frozen model in fewer bits; an adapter is attached afterwards.

Only linear layers inside repeated blocks are quantized: they hold nearly all weights, and the few
layers at the ends of the model decide its quality. Nothing here knows a family.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from simpletuner.config.catalogs.precisions import GRAIN, PRECISIONS
from simpletuner.core.errors import UserError
from simpletuner.models.precision.storage import Storage, StorageType


def quantize_blocks(model: nn.Module, precision: str, blocks: str, spared: str = "") -> int:
    """Replace the linear layers below `blocks` of `model` by quantized ones, in place, where they lie.

    Args:
        model: A frozen model.
        precision: A name of the catalog; one that stores no layer in fewer bits does nothing.
        blocks: Name of the list of repeated blocks ("transformer_blocks").
        spared: Last name of layers that stay as they are.

    Returns:
        How many layers were quantized.

    Raises:
        UserError: If the package behind it is not installed.
    """
    if not PRECISIONS[precision].target:
        return 0
    storage = open_storage(precision)
    chosen = layers_to_quantize(model, blocks, spared)
    with quiet_libraries():
        for name in chosen:
            put_layer(model, name, storage.quantize(plain_layer(model, name)))
    model.requires_grad_(False)
    return len(chosen)


def fill_quantized(
    shell: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    precision: str,
    blocks: str,
    *,
    dtype: torch.dtype,
    place: torch.device,
    device: torch.device,
) -> nn.Module:
    """Fill an empty model, quantizing each layer as soon as its weights are there.

    At no time more than one layer is in memory unquantized, so that a model may be larger than the memory.

    Args:
        shell: A model on the meta device.
        tensors: Name -> tensor of every parameter and buffer, in any order; read one by one.
        precision: A name of the catalog that stores layers in fewer bits.
        blocks: Name of the list of repeated blocks.
        dtype: Number format of what stays unquantized.
        place: Where layers are quantized.
        device: Where the model shall lie.

    Raises:
        UserError: If the package behind the precision is not installed.
    """
    storage = open_storage(precision)
    chosen = set(layers_to_quantize(shell, blocks))
    with quiet_libraries():
        for name, tensor in tensors:
            layer = name.rpartition(".")[0]
            set_tensor(shell, name, tensor.to(place if layer in chosen else device, dtype))
            if layer in chosen and not any(p.is_meta for p in shell.get_submodule(layer).parameters()):
                quantized = storage.quantize(plain_layer(shell, layer).requires_grad_(False))
                put_layer(shell, layer, quantized.to(device))
    return shell.requires_grad_(False)


def layers_to_quantize(model: nn.Module, blocks: str, spared: str = "") -> list[str]:
    """Full names of the layers that are stored in fewer bits, in the model's order."""
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and f".{blocks}." in f".{name}" and _fits(module)
        if name.rpartition(".")[2] != spared
    ]


def open_storage(precision: str) -> Storage:
    """The format behind a precision that stores layers in fewer bits.

    Raises:
        UserError: If its package is not installed.
    """
    row = PRECISIONS[precision]
    try:
        with quiet_libraries():
            make: StorageType = PRECISIONS.load(precision)
            return make(**row.settings)
    except ImportError as error:
        raise UserError(
            f"precision {precision} needs a package that is not installed ({error.name})",
            f"It comes with the extra '{row.extra}'",
            f"pip install 'simpletuner[{row.extra}]', or set the precision to no_change",
        ) from error


def plain_layer(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer called `name`."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def put_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def set_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a frozen tensor in the place of the parameter or buffer called `name`."""
    parent, _, leaf = name.rpartition(".")
    owner = model.get_submodule(parent)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def _fits(layer: nn.Linear) -> bool:
    return layer.in_features % GRAIN == 0 and layer.out_features % GRAIN == 0


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
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
