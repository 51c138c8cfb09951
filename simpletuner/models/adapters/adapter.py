"""What is trained, whatever library it comes from.

An adapter is attached to a frozen transformer; `full.py`, which trains the transformer itself, fulfils the
same protocol. Whoever trains, saves or switches it off knows it only by this protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from simpletuner.models.adapters import weights_file
from simpletuner.models.family import ModelFamily

ADAPTER_FILE: Final = weights_file.ADAPTER_FILE


class Adapter(Protocol):
    """Trained tensors, mostly beside a frozen model."""

    @property
    def weights_name(self) -> str:
        """Name of what `save` writes: a file, or a folder of files."""

    @property
    def keeps_base(self) -> bool:
        """Whether `disabled` gives the base model at any time, not only before the first step."""

    @property
    def undecayed(self) -> frozenset[str]:
        """Names of the parameters that weight decay must spare; they are the last ones in `parameters`."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a checkpoint of it must share with the run that continues: kind, size, layers. JSON values."""

    @property
    def layers(self) -> Sequence[str]:
        """Full names of the linear layers that an adapter acts on; empty where the model itself is trained."""

    @property
    def file_is_exact(self) -> bool:
        """Whether the file holds the trained tensors bit for bit, so that a run continues from it alone."""

    def describe(self) -> str:
        """One line for the story before step 1: kind, size, on how many layers."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained tensors by name, in an order that does not change."""

    def move(self, device: torch.device) -> None:
        """Put what it holds beside the transformer's own tree on `device`, in place."""

    def load_file_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors of a file that `save` wrote in the place of the trained ones, exactly.

        Raises:
            UserError: If names or shapes differ; nothing is changed then.
        """

    def load_start(self, path: Path, family: ModelFamily) -> None:
        """Put the weights of a file of any known layout in the place of the trained ones.

        Raises:
            UserError: If it cannot be read, or does not fit.
        """

    def save(self, path: Path, metadata: Mapping[str, str], values: Mapping[str, Tensor] | None = None) -> None:
        """Write what was trained as one safetensors file, or as a folder of them, atomically.

        Args:
            path: The file or folder.
            metadata: Texts that travel with the weights.
            values: What is written in place of `parameters`, by the same names: averages, or copies on the host. With
                them nothing that is being trained is read, so that another thread may go on training.

        Raises:
            UserError: If the disk is full or the folder cannot be written.
        """

    def disabled(self) -> AbstractContextManager[None]:
        """The base model alone for the length of the block (see `keeps_base`)."""

    def shown(self) -> AbstractContextManager[None]:
        """The adapter at the strength at which validation shows it, for the length of the block."""

    def measured(self) -> AbstractContextManager[None]:
        """The adapter at the strength at which it is trained, without dropout, for the length of the block."""
