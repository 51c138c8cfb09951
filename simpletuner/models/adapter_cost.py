"""How many values the adapters of the LyCORIS library train. Plain arithmetic, no torch.

LoKr (Yeh et al. 2023, arXiv 2309.14859): W [out, in] gets a Kronecker product of w1 [l, m] and
w2 [k, n] with out = l k, in = m n, l and m the largest divisors not above the factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_DIMENSION = 4


@dataclass(frozen=True)
class LayerKind:
    """What one layer gets: the settings of a LyCORIS file that decide its size."""

    algo: str
    dimension: int
    factor: int
    full_matrix: bool
    block_size: int

    @classmethod
    def of(cls, whole: Mapping[str, object], group: Mapping[str, object]) -> LayerKind:
        """From the file as a whole and the settings of a group of layers, which win."""
        words = {**whole, **{key: value for key, value in group.items() if value is not None}}
        return cls(
            algo=str(words.get("algo") or "lokr"),
            dimension=int(str(words.get("linear_dim") or DEFAULT_DIMENSION)),
            factor=int(str(words.get("factor") or -1)),
            full_matrix=bool(words.get("full_matrix")),
            block_size=int(str(words.get("block_size") or DEFAULT_DIMENSION)),
        )

    def values(self, inputs: int, outputs: int) -> int:
        """Trained values on a linear layer of this shape; estimates for the rarer kinds."""
        if self.algo == "lokr":
            return self._kronecker(inputs, outputs)
        return {
            "full": inputs * outputs,
            "ia3": inputs,
            "loha": 2 * self.dimension * (inputs + outputs),
            "glora": 2 * self.dimension * (inputs + outputs),
            "diag-oft": outputs * self.block_size,
            "boft": outputs * self.block_size,
        }.get(self.algo, self.dimension * (inputs + outputs))

    def _kronecker(self, inputs: int, outputs: int) -> int:
        left, right = _divisor(outputs, self.factor), _divisor(inputs, self.factor)
        rows, columns = outputs // left, inputs // right
        full = self.full_matrix or 2 * self.dimension >= max(rows, columns)
        return left * right + (rows * columns if full else self.dimension * (rows + columns))


def _divisor(size: int, factor: int) -> int:
    """The largest divisor of `size` not above `factor`; without a factor the one nearest below the root."""
    most = factor if factor > 0 else int(size**0.5)
    return next((part for part in range(min(most, size), 0, -1) if size % part == 0), 1)
