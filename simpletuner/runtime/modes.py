"""A model in evaluation mode for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch off what only training does, such as dropout; each module gets back the mode it had.

    What lies outside the model's own tree, such as a LyCORIS network, is not reached: see `Adapter.measured`.
    """
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True
