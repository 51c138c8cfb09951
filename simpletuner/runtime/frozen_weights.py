"""Frozen weights as the plain tensors behind them, so that they can lie elsewhere and be put together again.

A quantized weight is an object around several tensors: numbers, scales, tables. Moving such an object by its own
methods makes new tensors each time and, with some libraries, converts it. Here it is taken apart once; any set of
tensors of the same shapes makes an equal weight again. Knows torch and the shape of the libraries' objects only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

ALIGNMENT = 64  # bytes; more than any dtype or copy engine asks for

# Plain tensors of the same shapes -> an equal weight.
Build = Callable[[Sequence[Tensor]], Tensor]


# Lets a layer compute with other leaves; returns what puts its own weight back.
Wear = Callable[[Sequence[Tensor]], Callable[[], None]]


@dataclass(frozen=True)
class FrozenWeight:
    """One frozen weight of a layer.

    Attributes:
        module: The layer that owns it.
        name: Its name there.
        leaves: The plain tensors behind it.
        wear: Lets the layer compute with other tensors of the same shapes, anywhere.
    """

    module: nn.Module
    name: str
    leaves: tuple[Tensor, ...]
    wear: Wear


def frozen_weights(block: nn.Module) -> list[FrozenWeight]:
    """The weights of `block` that are not trained, in a fixed order."""
    return [
        _take_apart(module, name, parameter)
        for module in block.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and not parameter.requires_grad
    ]


def _take_apart(module: nn.Module, name: str, parameter: nn.Parameter) -> FrozenWeight:
    # bitsandbytes is not imported for two names; its LLM.int8 layer keeps its numbers outside its weight.
    if name == "weight" and type(module).__name__ == "Linear8bitLt":
        return _eight_bit(module)
    if type(parameter).__name__ == "Params4bit":
        leaves, build = _four_bit(parameter)
    elif is_traceable_wrapper_subclass(parameter):
        leaves, build = _subclass(parameter)
    else:
        leaves, build = [parameter.data], lambda tensors: nn.Parameter(tensors[0], requires_grad=False)
    return FrozenWeight(module, name, tuple(leaves), _swapping(module, name, build))


def _swapping(module: nn.Module, name: str, build: Build) -> Wear:
    weights: dict[str, Any] = module._parameters  # a quantized weight need not be a Parameter

    def wear(leaves: Sequence[Tensor]) -> Callable[[], None]:
        own = weights[name]
        weights[name] = build(leaves)

        def take_off() -> None:
            weights[name] = own

        return take_off

    return wear


def _subclass(weight: Any) -> tuple[list[Tensor], Build]:
    """A tensor subclass by PyTorch's own protocol for taking one apart, down to plain tensors."""
    names, context = weight.__tensor_flatten__()
    kind, size, stride = type(weight), weight.size(), weight.stride()
    leaves: list[Tensor] = []
    parts: list[tuple[str, int, Build]] = []
    for name in names:
        inner = getattr(weight, name)
        own, build = _subclass(inner) if is_traceable_wrapper_subclass(inner) else ([inner], lambda tensors: tensors[0])
        leaves += own
        parts.append((name, len(own), build))

    def rebuild(tensors: Sequence[Tensor]) -> Tensor:
        given = iter(tensors)
        inner = {name: build([next(given) for _ in range(count)]) for name, count, build in parts}
        made: Tensor = kind.__tensor_unflatten__(inner, context, size, stride)
        return made

    return leaves, rebuild


def _four_bit(weight: Any) -> tuple[list[Tensor], Build]:
    """A bitsandbytes 4-bit weight: packed numbers, and scales that may be quantized themselves."""
    state = weight.quant_state
    places = [(state, "absmax"), (state, "code")]
    if state.nested:
        places += [(state, "offset"), (state.state2, "absmax"), (state.state2, "code")]
    leaves = [weight.data, *(getattr(owner, name) for owner, name in places)]

    def rebuild(tensors: Sequence[Tensor]) -> Tensor:
        own = copy.copy(state)
        own.absmax, own.code = tensors[1], tensors[2]
        if state.nested:
            own.offset, own.state2 = tensors[3], copy.copy(state.state2)
            own.state2.absmax, own.state2.code = tensors[4], tensors[5]
        made: Tensor = type(weight)(
            tensors[0],
            requires_grad=False,
            quant_state=own,
            blocksize=weight.blocksize,
            compress_statistics=weight.compress_statistics,
            quant_type=weight.quant_type,
            quant_storage=weight.quant_storage,
            bnb_quantized=True,
        )
        return made

    return leaves, rebuild


def _eight_bit(module: Any) -> FrozenWeight:
    if module.weight.CB is not None:
        module.init_8bit_state()
    kind, leaves = type(module.weight), (module.state.CB, module.state.SCB)
    swap = _swapping(module, "weight", lambda tensors: kind(tensors[0], requires_grad=False, has_fp16_weights=False))

    def wear(tensors: Sequence[Tensor]) -> Callable[[], None]:
        put_back, own = swap(tensors), module.state
        # A state of its own: the backward pass looks there again, after the layer's own one is back.
        module.state = copy.copy(own)
        module.state.CB, module.state.SCB = tensors

        def take_off() -> None:
            put_back()
            module.state = own

        return take_off

    return FrozenWeight(module, "weight", leaves, wear)


@dataclass(frozen=True)
class Packing:
    """Where the leaves of one block lie in one buffer of bytes; equal packings can share buffers.

    Attributes:
        places: (offset in bytes, dtype, shape) of each leaf.
        num_bytes: Length of the buffer.
    """

    places: tuple[tuple[int, torch.dtype, tuple[int, ...]], ...]
    num_bytes: int

    @classmethod
    def of(cls, leaves: Sequence[Tensor]) -> Packing:
        """The packing of these leaves, in their order."""
        places, offset = [], 0
        for leaf in leaves:
            places.append((offset, leaf.dtype, tuple(leaf.shape)))
            offset += -(-leaf.numel() * leaf.element_size() // ALIGNMENT) * ALIGNMENT
        return cls(tuple(places), offset)

    def views(self, buffer: Tensor) -> Iterator[Tensor]:
        """The leaves in a buffer [num_bytes] uint8, as views of it."""
        for offset, dtype, shape in self.places:
            count = torch.Size(shape).numel() * dtype.itemsize
            yield buffer[offset : offset + count].view(dtype).view(shape)

    def fill(self, buffer: Tensor, leaves: Sequence[Tensor]) -> None:
        """Copy leaves to their places."""
        with torch.no_grad():
            for view, leaf in zip(self.views(buffer), leaves, strict=True):
                view.copy_(leaf)
