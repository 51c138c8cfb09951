"""What streaming of blocks means for one run: bytes that stay on the card, bytes that wait, time on the way.

Plain arithmetic for `forecast.py`; the streamer itself is `runtime/streaming.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from simpletuner.config.catalogs.cards import CardRow
from simpletuner.config.sections.memory import MemorySection
from simpletuner.models.cost import ModelCost, TrainedPart

GROUPS_ON_DEVICE = 2  # as runtime/streaming.py, which would import torch here; a test holds them equal


@dataclass(frozen=True)
class StreamingPlan:
    """The frozen weights of a run, by where they are.

    Attributes:
        resident_bytes: On the card, the two buffers for groups on their way included.
        waiting_bytes: In RAM or on disk; 0 without streaming.
        overlaps: Whether copies go on while the card computes.
        on_disk: Whether what waits lies on disk.
    """

    resident_bytes: float
    waiting_bytes: float
    overlaps: bool
    on_disk: bool

    def seconds(self, computing: float, passes: float, card: CardRow) -> float:
        """Time of work that takes `computing` seconds and passes through the blocks `passes` times."""
        moving = self.waiting_bytes * passes / card.link_bytes
        return max(computing, moving) if self.overlaps else computing + moving


def plan_streaming(memory: MemorySection, cost: ModelCost, trained: TrainedPart) -> StreamingPlan:
    """Where the frozen weights of a run are."""
    whole = cost.stored_bytes("transformer", trained.stored, trained.weight_bytes)
    block = cost.stored_bytes("block", trained.stored, trained.weight_bytes)
    count, _ = cost.blocks
    away = memory.blocks_streamed(count)
    buffers = min(away, GROUPS_ON_DEVICE * memory.blocks_per_group)
    return StreamingPlan(
        resident_bytes=whole - (away - buffers) * block,
        waiting_bytes=away * block,
        overlaps=memory.group_offload_use_stream or bool(memory.group_offload_to_disk_path),
        on_disk=bool(memory.group_offload_to_disk_path),
    )
