"""How much goes through the model at once: a batch in one piece, or in parts whose gradients add up.

All draws belong to samples and every sample counts by its share, so a batch in parts is the same step up to the
rounding of sums. Exceptions are dropout and layers that LyCORIS leaves out, which are drawn for each pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from simpletuner.config.sections.memory import clips_per_pass
from simpletuner.data.batch import Batch


@dataclass
class PassLimit:
    """The most latent cells of one forward pass; one clip always goes.

    Attributes:
        tokens: The limit, None without one.
        is_whole: Whether batches must stay whole: weights that move in the backward pass cannot wait for a second one.
    """

    tokens: int | None = None
    is_whole: bool = False
    _clips: int = 0
    _cells: int = 0

    def parts(self, batch: Batch) -> tuple[Batch, ...]:
        """The batch in as few parts as the limit allows."""
        clips, self._cells = len(batch.sample_numbers), batch.cells
        self._clips = clips_per_pass(clips, self._cells, self.tokens)
        return batch.split(self._clips)

    def turn_down(self) -> bool:
        """Halve the parts of the batch seen last, which did not fit; False where they are single clips."""
        if self._clips <= 1 or self.is_whole:
            return False
        self.tokens = -(-self._clips // 2) * self._cells
        return True

    def __str__(self) -> str:
        return f"{self.tokens:,} latent cells"
