"""How many values the adapters of the LyCORIS library train. Plain arithmetic, no torch.

LoKr (Yeh et al. 2023, arXiv 2309.14859): W [out, in] gets a Kronecker product of w1 [l, m] and
w2 [k, n] with out = l k, in = m n. The tests compare every kind with the library's own tensors.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

from simpletuner.config.lycoris_file import LayerChoice, LycorisFile
from simpletuner.models.cost import CostSource

DEFAULT_DIMENSION = 4
# Outer classes first: a group of an inner class speaks for the layers of both.
_OUTER = ("LTXVideoTransformerBlock",)


@dataclass(frozen=True)
class LayerKind:
    """What one layer gets: the settings of a LyCORIS file that decide its size."""

    algo: str
    dimension: int
    factor: int
    full_matrix: bool
    decompose_both: bool = False
    unbalanced: bool = False
    extra_rows: bool = False  # DoRA's lengths, or OFT's factors, one for each output
    extra_columns: bool = False  # DoRA's lengths of the inputs
    scalar: bool = False
    on_input: bool = False

    @classmethod
    def of(cls, whole: Mapping[str, object], group: Mapping[str, object]) -> LayerKind:
        """From the file as a whole and the settings of a group of layers, which win."""
        words = {**whole, **{key: value for key, value in group.items() if value is not None}}
        algo, on_output = str(words.get("algo") or "lokr"), words.get("wd_on_output") is not False
        dora = bool(words.get("dora_wd")) and algo in ("lokr", "loha", "locon", "lora")
        return cls(
            algo=algo,
            dimension=int(str(words.get("linear_dim") or DEFAULT_DIMENSION)),
            factor=int(str(words.get("factor") or -1)),
            full_matrix=bool(words.get("full_matrix")),
            decompose_both=bool(words.get("decompose_both")),
            unbalanced=bool(words.get("unbalanced_factorization")),
            extra_rows=(dora and on_output) or (algo in ("diag-oft", "boft") and bool(words.get("rescaled"))),
            extra_columns=dora and not on_output,
            scalar=bool(words.get("use_scalar")) and algo in ("lokr", "loha", "locon", "lora", "glora"),
            on_input=bool(words.get("train_on_input")),
        )

    def values(self, inputs: int, outputs: int) -> int:
        """Trained values on a linear layer with a bias of this shape."""
        extra = (outputs if self.extra_rows else 0) + (inputs if self.extra_columns else 0) + int(self.scalar)
        if self.algo == "lokr":
            return self._kronecker(inputs, outputs) + extra
        if self.algo == "boft":
            return self._butterflies(outputs) + extra
        own = {
            "full": inputs * outputs + outputs,
            "ia3": inputs if self.on_input else outputs,
            "loha": 2 * self.dimension * (inputs + outputs),
            "glora": self.dimension * (3 * inputs + outputs),
            "diag-oft": outputs * split(outputs, self.dimension)[0],
        }.get(self.algo, self.dimension * (inputs + outputs))
        return own + extra

    def _kronecker(self, inputs: int, outputs: int) -> int:
        (left, rows), (right, columns) = split(outputs, self.factor), split(inputs, self.factor)
        if self.unbalanced:
            left, rows = rows, left
        whole_second = self.full_matrix or 2 * self.dimension >= max(rows, columns)
        thin_first = self.decompose_both and not self.full_matrix and 2 * self.dimension < max(left, right)
        first = self.dimension * (left + right) if thin_first else left * right
        return first + (rows * columns if whole_second else self.dimension * (rows + columns))

    def _butterflies(self, outputs: int) -> int:
        """Blocks of b channels, n of them a power of two, in as many layers as n - 1 has ones, and one more."""
        block = max(
            (size for size in range(2, min(self.dimension, outputs) + 1, 2) if _is_power(outputs, size)), default=2
        )
        number = outputs // block
        return (bin(number - 1).count("1") + 1) * number * block * block


def lycoris_layers(
    file: LycorisFile, layers: Mapping[str, tuple[int, int]], source: CostSource, default_class: str
) -> dict[str, LayerKind]:
    """Linear layers that a file gives an adapter, each with its kind, as the library chooses them.

    Args:
        file: The LyCORIS file.
        layers: Full name -> (inputs, outputs) of every linear layer of the model.
        source: Knows which layers lie inside a class.
        default_class: Class that is meant where the file names no target.
    """
    choice, whole = file.apply_preset, file.model_dump()
    classes = choice.target_module or ([] if choice.target_name else [default_class])
    wanted = dict.fromkeys([*classes, *choice.module_algo_map])
    kinds: dict[str, LayerKind] = {}
    for name in sorted(wanted, key=lambda name: name not in _OUTER):
        group = choice.module_algo_map.get(name)
        kind = LayerKind.of(whole, group.model_dump() if group else {})
        for layer in source.layers_of_class(layers, name):
            if group is not None or layer not in kinds:
                kinds[layer] = kind
    for layer in layers:
        patterns = [
            pattern for pattern in (*choice.name_algo_map, *choice.target_name) if is_named(pattern, layer, choice)
        ]
        if patterns and layer not in kinds:
            group = next((choice.name_algo_map[p] for p in patterns if p in choice.name_algo_map), None)
            kinds[layer] = LayerKind.of(whole, group.model_dump() if group else {})
    return {layer: kinds[layer] for layer in layers if layer in kinds}


def is_named(pattern: str, layer: str, choice: LayerChoice) -> bool:
    """Whether a name of the file means a layer, as the library matches names: as a whole, as a regular expression from
    the beginning, or as a shell pattern with `use_fnmatch`."""
    if pattern == layer:
        return True
    shell = (choice.model_extra or {}).get("use_fnmatch")
    return fnmatch.fnmatch(layer, pattern) if shell else re.match(pattern, layer) is not None


def split(size: int, factor: int) -> tuple[int, int]:
    """`size` as a product, the smaller part first: with `factor` where it divides, else by the largest divisor up to
    it; with none (-1) as evenly as possible."""
    if factor > 0 and size % factor == 0:
        part = factor
    else:
        most = min(factor if factor > 0 else size, int(size**0.5))
        part = next((part for part in range(most, 0, -1) if size % part == 0), 1)
    return min(part, size // part), max(part, size // part)


def _is_power(outputs: int, size: int) -> bool:
    return outputs % size == 0 and bin(outputs // size).count("1") == 1
