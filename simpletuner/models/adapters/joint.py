"""Several linear layers of one input, each with a LoRA, as one node of the graph.

Layer by layer a LoRA's product is a tensor as large as the layer's output, which is read again to be added; backward,
the gradients of the input are as many tensors as there are products, added up one after the other. Here each product
adds to what is there already, and the first matrices of queries, keys and values act as one. What a product adds is
not rounded before it is added. What it saves: docs/lab_notes.md, "Operations of a step".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from simpletuner.models.adapters.thin_scale import ThinScale


class _Matrices(NamedTuple):
    """A layer and its LoRA: x W^T + bias + factor (x A^T) B^T."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor
    up: Tensor
    factor: float


def project(layers: Sequence[nn.Module], tokens: Tensor) -> Sequence[Tensor]:
    """What each of the layers makes of the same tokens [.., D].

    Layers that are anything but a plain linear layer with one plain LoRA of the tokens' number format (quantized, other
    kinds of adapters, several of them, dropout, hooks) are simply called, one by one.
    """
    if torch.compiler.is_compiling():
        return [layer(tokens) for layer in layers]
    found = [_matrices(layer, tokens) for layer in layers]
    known = [matrices for matrices in found if matrices is not None]
    if len(known) < len(found) or len({matrices.factor for matrices in known}) > 1:
        return [layer(tokens) for layer in layers]
    flat = [part for matrices in known for part in matrices[:4]]
    outputs: tuple[Tensor, ...] = _Joint.apply(tokens, known[0].factor, *flat)  # type: ignore[no-untyped-call]
    return outputs


def _matrices(layer: Any, tokens: Tensor) -> _Matrices | None:
    """The matrices of a layer that is nothing but its formula."""
    if type(layer) is not LoraLinear or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    (adapter,) = layer.active_adapters
    if type(layer.lora_variant.get(adapter)) is not ThinScale:
        return None
    base, down, up = layer.base_layer, layer.lora_A[adapter], layer.lora_B[adapter]
    dropout = layer.lora_dropout[adapter]
    if type(base) is not nn.Linear or (dropout.training and type(dropout) is not nn.Identity):
        return None
    if any(_is_watched(module) for module in (layer, base, down, up)):
        return None
    weights = (base.weight, down.weight, up.weight)
    # A quantized weight is a parameter of a type of its own.
    if any(type(weight) is not nn.Parameter or weight.dtype != tokens.dtype for weight in weights):
        return None
    if base.weight.requires_grad or up.bias is not None or torch.is_autocast_enabled(tokens.device.type):
        return None
    return _Matrices(base.weight, base.bias, down.weight, up.weight, layer.scaling[adapter])


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody takes part when the module is called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, factor: float, *flat: Any) -> tuple[Tensor, ...]:
        """Args: tokens [.., D]; the factor of all; then weight, bias, down [r, D] and up [.., r] of each layer."""
        weights, biases, downs, ups = (flat[part::4] for part in range(4))
        rows = tokens.flatten(0, -2)
        down = torch.cat(downs) if len(downs) > 1 else downs[0]
        thin = rows @ down.t()
        if factor != 1:
            thin.mul_(factor)
        sizes = [len(own) for own in downs]
        outputs = []
        for weight, bias, up, own in zip(weights, biases, ups, thin.split(sizes, dim=1), strict=True):
            plain = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
            outputs.append(plain.addmm_(own, up.t()).view(*tokens.shape[:-1], -1))
        # The tokens as they were given: what offloads activations knows them by where they come from.
        ctx.save_for_backward(tokens, thin, down, *weights, *ups)
        ctx.factor, ctx.sizes = factor, sizes
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of the tokens and of each layer's down and up."""
        tokens, thin, down, *rest = ctx.saved_tensors
        rows = tokens.flatten(0, -2)
        count = len(gradients)
        weights, ups = rest[:count], rest[count:]
        gradients = tuple(gradient.flatten(0, -2) for gradient in gradients)
        of_thin = [gradient @ up for gradient, up in zip(gradients, ups, strict=True)]
        joined = torch.cat(of_thin, dim=1) if count > 1 else of_thin[0]
        if ctx.factor != 1:
            joined = joined * ctx.factor
        of_downs = (joined.t() @ rows).split(ctx.sizes)
        of_ups = [gradient.t() @ own for gradient, own in zip(gradients, thin.split(ctx.sizes, dim=1), strict=True)]
        of_tokens = None
        if ctx.needs_input_grad[0]:
            of_tokens = joined @ down
            for gradient, weight in zip(gradients, weights, strict=True):
                of_tokens.addmm_(gradient, weight)
            of_tokens = of_tokens.view(tokens.shape)
        flat = [part for pair in zip(of_downs, of_ups, strict=True) for part in (None, None, *pair)]
        return of_tokens, None, *flat
