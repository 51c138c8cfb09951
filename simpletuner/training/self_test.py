"""A look before the long run: does a gradient reach every adapted layer?

Some ways to store weights let values through and no gradient; such a run would look healthy and
train only its last layer. One small step through the real model shows it in a second.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from simpletuner.core.errors import UserError
from simpletuner.models.family import ModelFamily, Source
from simpletuner.runtime.random import draw_normal
from simpletuner.training.build import Trainable

TRIAL_STREAM = "self-test"
TRIAL_SHAPE = (2, 2, 2)  # latent frames, height, width: enough for every kind of attention
TRIAL_WORDS = 16
NAMED = 5


def refuse_deaf_layers(trainable: Trainable, family: ModelFamily, source: Source, precision: str) -> None:
    """Prove that training can reach every adapted layer; the state of the model is as before.

    Args:
        trainable: A model with its adapter, before the first step.
        precision: Name of the storage format, for the message.

    Raises:
        UserError: Naming the layers that get no gradient, or one that is not finite.
    """
    channels, text_width = family.input_widths(trainable.transformer)
    latents = _draw((channels, *TRIAL_SHAPE), trainable.device)
    prompt = _draw((TRIAL_WORDS, text_width), trainable.device)
    mask = torch.ones(1, TRIAL_WORDS, dtype=torch.bool, device=trainable.device)
    sigmas, rates = (torch.full((1,), value, device=trainable.device) for value in (0.5, 25.0))
    # Layers that are left out by chance are not deaf; while the adapter is shown none is left out.
    whole = trainable.adapter.shown() if trainable.skips_layers else nullcontext()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), whole:
        family.predict(trainable.transformer, source, latents, sigmas, prompt, mask, rates).square().mean().backward()
    deaf = _deaf_layers(trainable)
    for parameter in trainable.parameters.values():
        parameter.grad = None
    if deaf:
        more = f" and {len(deaf) - NAMED} more" if len(deaf) > NAMED else ""
        raise UserError(
            f"no usable gradient reaches {len(deaf)} adapted layers: {', '.join(deaf[:NAMED])}{more}",
            f"With base_model_precision {precision} these layers would not be trained",
            "Choose another base_model_precision, such as int8-quanto or no_change",
        )


def _deaf_layers(trainable: Trainable) -> list[str]:
    """Layers none of whose trained tensors has a gradient; one side of a fresh adapter is zero by design."""
    heard: dict[str, bool] = {}
    for name, parameter in trainable.parameters.items():
        # LyCORIS writes a layer's name without dots; of parts of its rank (dylora) the last one alone is trained.
        layer = name.rpartition(".lora_")[0] or name.partition(".")[0]
        gradient = parameter.grad
        usable = gradient is not None and bool(torch.isfinite(gradient).all()) and bool((gradient != 0).any())
        heard[layer] = heard.get(layer, False) or usable
    return [layer for layer, is_heard in heard.items() if not is_heard]


def _draw(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return draw_normal(shape, 0, TRIAL_STREAM, [0]).to(device)
