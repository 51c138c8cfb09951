"""What each way of storing a layer in fewer bits offers; the rows of the catalog name one each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class Storage(Protocol):
    """One library's format of a linear layer's weight."""

    package: str  # distribution whose version decides what a stored weight looks like

    def quantize(self, layer: nn.Linear) -> nn.Module:
        """The layer with its weight in this format, where it lies; its bias stays."""

    def tensors(self, layer: nn.Module) -> dict[str, Tensor]:
        """What became of the weight of a layer that `quantize` gave, as plain tensors by name."""

    def rebuild(self, layer: nn.Linear, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The layer that `quantize` gave, from what `tensors` told of it; nothing is computed anew.

        Args:
            layer: The layer with its bias; its weight may be on the meta device.
            tensors: Where the weight shall lie.
        """


class StorageType(Protocol):
    """How a format is made from the settings of its row."""

    def __call__(self, **settings: Any) -> Storage: ...
