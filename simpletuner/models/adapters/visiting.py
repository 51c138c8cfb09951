"""LoRA files that act on a model for a while, beside whatever it wears: for validation only.

Each adds strength * scale * B (A x) to what its layers give, by a hook on the layer. So it does not matter how the
layer stores its weight, what is trained on it, or whether its block is streamed; and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor, nn

from simpletuner.core.errors import UserError
from simpletuner.models.adapters.applied import refuse_misfits
from simpletuner.models.adapters.lora_file import LayerLora, read_lora_file
from simpletuner.models.adapters.weights_file import read_weights_file
from simpletuner.models.family import ModelFamily, Source


class VisitingLora:
    """One LoRA file for the transformer of one checkpoint."""

    def __init__(self, family: ModelFamily, source: Source, path: Path, strength: float) -> None:
        """Read the file.

        Raises:
            UserError: If it cannot be read, is another kind of file, or does not fit the transformer.
        """
        weights = read_weights_file(path, strength)
        if weights.kind != "lora" or weights.uses_dora:
            what = "a DoRA" if weights.uses_dora else f"a {weights.kind} file"
            raise UserError(
                f"'{path}' is {what}",
                "Only what a plain LoRA adds can be put beside what is trained",
                "Use `simpletuner generate` with several adapters to see it, or convert it with `simpletuner export`",
            )
        file = read_lora_file(weights.path, family)
        refuse_misfits(family.empty_transformer(source), [(weights, file)])
        self._strength = strength
        self._layers = dict(file.layers)

    @property
    def count(self) -> int:
        """Layers it acts on."""
        return len(self._layers)

    @contextmanager
    def worn(self, transformer: nn.Module) -> Iterator[None]:
        """The file's LoRA at its strength on `transformer`, for the length of the block."""
        modules = dict(transformer.named_modules())
        with ExitStack() as hooks:
            for name, lora in self._layers.items():
                handle = modules[name].register_forward_hook(_adding(lora, self._strength))
                hooks.callback(handle.remove)
            yield


def _adding(lora: LayerLora, strength: float) -> Callable[[nn.Module, Sequence[Tensor], Tensor], Tensor]:
    """A hook that adds a layer's LoRA, with its matrices brought to where the layer computes once."""
    kept: list[Tensor] = []

    def add(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
        given = inputs[0]
        if not kept or kept[0].device != given.device or kept[0].dtype != given.dtype:
            up = lora.up.double() * (lora.scale * strength)
            kept[:] = [lora.down.to(given.device, given.dtype), up.to(given.device, given.dtype)]
        down, up_scaled = kept
        return output + nn.functional.linear(nn.functional.linear(given, down), up_scaled)

    return add
