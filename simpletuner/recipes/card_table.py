"""What a run would need on cards of the usual sizes: `memory_plan.py` asked once for each.

Nothing that somebody set counts here but the data, the batch and what is trained. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from simpletuner.config.catalogs.cards import CARDS
from simpletuner.config.run_config import RunConfig
from simpletuner.recipes.memory_forecast import Verdict
from simpletuner.recipes.memory_plan import plan_memory, with_choices
from simpletuner.recipes.run_length import DataPlan
from simpletuner.runtime.machine import Machine

SIZES_GB: Final = (10, 12, 16, 24, 48, 80, 141)  # of 10^9 bytes, a little less than such cards have
# As a run begins that asks for nothing.
_PLAIN: Final[dict[str, Any]] = {
    "memory_budget": "auto", "base_model_precision": "no_change", "enable_group_offload": False,
    "musubi_blocks_to_swap": 0, "gradient_checkpointing": True, "gradient_checkpointing_interval": None,
    "gradient_checkpointing_blocks": None, "max_tokens_per_pass": None, "group_offload_text_encoder": False,
    "vae_enable_tiling": False, "enable_model_cpu_offload": False,
}  # fmt: skip


@dataclass(frozen=True)
class CardNeeds:
    """What one size of card asks for.

    Attributes:
        size_gb: The card.
        precision: Storage of the frozen blocks.
        streamed: Whether they wait in RAM and are brought one by one.
        recomputed, blocks: How many of the blocks are recomputed.
        tokens_per_pass: Most latent cells computed at once, None for whole batches.
        text_streamed: Whether the text encoder's blocks come one by one.
        tiled: Whether the autoencoder works in tiles.
        peak_bytes, peak_phase: The largest phase.
        most_clips: Clips of the largest size at once, with every block recomputed.
        verdict: Whether all of it is enough.
    """

    size_gb: int
    precision: str
    streamed: bool
    recomputed: int
    blocks: int
    tokens_per_pass: int | None
    text_streamed: bool
    tiled: bool
    peak_bytes: float
    peak_phase: str
    most_clips: int
    verdict: Verdict


def tabulate_cards(
    config: RunConfig, data: DataPlan | None, machine: Machine, sizes_gb: Sequence[int] = SIZES_GB
) -> list[CardNeeds]:
    """One row per size; empty without a data set."""
    if data is None:
        return []
    plain = with_choices(config, _PLAIN, "default")
    rows = []
    for size in sizes_gb:
        card = replace(CARDS["rtx3090"], label=f"{size} GB", memory_bytes=size * 1e9)
        plan = plan_memory(plain, data, machine, card, freely=True)
        memory = plan.config.memory
        rows.append(
            CardNeeds(
                size_gb=size,
                precision=str(plan.config.precision.base_model_precision),
                streamed=memory.streams_blocks,
                recomputed=memory.blocks_recomputed(plan.blocks),
                blocks=plan.blocks,
                tokens_per_pass=memory.max_tokens_per_pass,
                text_streamed=memory.group_offload_text_encoder,
                tiled=plan.config.caching.vae_enable_tiling,
                peak_bytes=plan.memory.peak_bytes,
                peak_phase=plan.memory.peak_phase,
                most_clips=plan.most_clips,
                verdict=plan.memory.verdict,
            )
        )
    return rows
