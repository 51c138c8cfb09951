"""What is chosen to fit a budget: least harm first, nothing of the user's own, and the forecast then fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.catalogs.cards import CARDS
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.data.sample import BucketKey
from simpletuner.recipes.card_table import SIZES_GB, tabulate_cards
from simpletuner.recipes.memory_plan import MemoryPlan, budget_card, is_wanted, plan_memory
from simpletuner.recipes.run_length import BucketLine, DataPlan
from simpletuner.runtime.machine import Machine
from tests.unit.recipes.test_forecast import run_of

ROOMY = Machine("NVIDIA GeForce RTX 3090", 24e9, (8, 6), 64e9, 8)
LARGE = ModelSection(model_family="ltxvideo", model_type="lora", model_flavour="0.9.7")


def data(width: int = 768, height: int = 512, frames: int = 49, batch: int = 1) -> DataPlan:
    shape = (128, (frames - 1) // 8 + 1, height // 32, width // 32)
    line = BucketLine(BucketKey(width, height, frames), 8, 8, 8, shape, shape[1] * shape[2] * shape[3], 8, batch)
    return DataPlan((line,), (), 0, (), (), (), 8, 8, is_assumed=True)


def planned(folder: Path, gigabytes: float, machine: Machine = ROOMY, found: DataPlan | None = None, *,
            origins: dict[str, str] | None = None, pinned: Any = None, **sections: Any) -> MemoryPlan:  # fmt: skip
    sections.setdefault("memory", MemorySection(memory_budget=f"{gigabytes}GB"))
    sections.setdefault("schedule", ScheduleSection(max_train_steps=10))
    config = replace(run_of(folder, **sections), origins=origins or {})
    return plan_memory(config, found or data(), machine, budget_card(config, machine), pinned)


def values(plan: MemoryPlan) -> dict[str, Any]:
    return {choice.option: choice.value for choice in plan.choices}


def test_the_dial_is_the_smallest_that_fits(tmp_path: Path) -> None:
    fixed = dict.fromkeys(("gradient_checkpointing_blocks", "base_model_precision", "enable_group_offload"), "here")
    for size, found in ((9, data()), (12, data()), (24, data(768, 512, 121))):
        plan = planned(tmp_path, size, found=found)
        turned = values(plan)["gradient_checkpointing_blocks"]
        assert plan.memory.verdict == "fits" or plan.memory.peak_phase != "training"
        assert 0 <= turned <= 28
        if turned:
            less = planned(
                tmp_path, size, found=found, origins=fixed,
                memory=MemorySection(memory_budget=f"{size}GB", gradient_checkpointing_blocks=turned - 1),
            )  # fmt: skip
            assert sum(less.memory.phases["training"].values()) > 0.9 * size * 1e9
    # A 24 GB card has room for 768x512x49 without any recomputation (the performance notes, section 5.2).
    assert values(planned(tmp_path, 24))["gradient_checkpointing_blocks"] == 0


@pytest.mark.parametrize(
    ("gigabytes", "chosen"),
    [
        (80, {}),
        (24, {"base_model_precision": "int8-quanto"}),
        (12, {"base_model_precision": "int8-quanto", "enable_group_offload": True, "group_offload_use_stream": True}),
    ],
)
def test_least_harm_first_for_13b(tmp_path: Path, gigabytes: float, chosen: dict[str, Any]) -> None:
    plan = planned(tmp_path, gigabytes, model=LARGE)
    found = values(plan)
    assert {name: found[name] for name in chosen} == chosen
    assert ("base_model_precision" in found) == bool(chosen)
    assert sum(plan.memory.phases["training"].values()) <= 0.9 * gigabytes * 1e9
    # Streamed blocks are all recomputed: there is no dial to turn.
    assert ("gradient_checkpointing_blocks" in found) != ("enable_group_offload" in found)
    assert plan.config.origins["gradient_checkpointing_blocks" if not chosen else "base_model_precision"].startswith(
        "memory_budget"
    )


@pytest.mark.parametrize("gigabytes", [10, 16, 24, 40, 80])
def test_a_large_batch_is_computed_in_parts_before_anything_else(tmp_path: Path, gigabytes: float) -> None:
    plan = planned(tmp_path, gigabytes, found=data(batch=8))
    found, cells = values(plan), data().buckets[0].tokens
    clips = found.get("max_tokens_per_pass", 8 * cells) / cells
    assert clips in (1, 2, 4, 8)
    assert sum(plan.memory.phases["training"].values()) <= 0.9 * gigabytes * 1e9
    assert "base_model_precision" not in found
    # Parts of more than a thousand cells keep a card busy: they come before recomputing.
    assert found["gradient_checkpointing_blocks"] == 0 or clips == 1
    if clips < 8:
        fixed = {"max_tokens_per_pass": "here", "gradient_checkpointing_blocks": "here"}
        more = planned(
            tmp_path, gigabytes, found=data(batch=8), origins={**fixed, "base_model_precision": "here"},
            memory=MemorySection(
                memory_budget=f"{gigabytes}GB", max_tokens_per_pass=int(2 * clips * cells),
                gradient_checkpointing_blocks=0,
            ),
        )  # fmt: skip
        assert sum(more.memory.phases["training"].values()) > 0.9 * gigabytes * 1e9


def test_four_bits_only_where_ram_is_short_too(tmp_path: Path) -> None:
    """8 bits of 13B streamed take 13 GB of RAM; a machine with 8 GB keeps 4 bits on the card instead."""
    poor = replace(ROOMY, memory_bytes=8e9)
    assert values(planned(tmp_path, 12, poor, model=LARGE))["base_model_precision"] == "nf4-bnb"
    apple = replace(poor, card_name="Apple M3")
    assert values(planned(tmp_path, 12, apple, model=LARGE))["base_model_precision"] == "int8-quanto"


def test_what_somebody_set_stays(tmp_path: Path) -> None:
    here = dict.fromkeys(("base_model_precision", "group_offload_text_encoder", "vae_enable_tiling"), "config.json:3")
    plan = planned(tmp_path, 12, model=LARGE, origins=here)
    found = values(plan)
    assert not set(here) & set(found)
    assert found["enable_group_offload"] is True  # the one thing left that helps
    all_set = {
        **here,
        "enable_group_offload": "x",
        "gradient_checkpointing_blocks": "x",
        "enable_model_cpu_offload": "x",
    }
    plan = planned(tmp_path, 12, model=LARGE, origins=all_set)
    assert (plan.choices, plan.fits) == ((), False)


def test_a_checkpoint_pins_the_storage(tmp_path: Path) -> None:
    facts = {"base_model_precision": "nf4-bnb", "train_batch_size": 1}
    found = planned(tmp_path, 24, model=LARGE, pinned=facts)
    assert values(found)["base_model_precision"] == "nf4-bnb"
    assert "as in the checkpoint" in str(found.choices[0])
    whole = {"base_model_precision": "no_change"}
    assert "base_model_precision" not in values(planned(tmp_path, 12, model=LARGE, pinned=whole))


def test_the_other_phases_are_made_to_fit(tmp_path: Path) -> None:
    found = values(planned(tmp_path, 8))
    assert found["group_offload_text_encoder"] is True
    assert "vae_enable_tiling" not in values(planned(tmp_path, 24))
    large = values(planned(tmp_path, 8, found=data(1216, 704, 121)))
    assert large["vae_enable_tiling"] is True


def test_only_the_dial_without_a_budget(tmp_path: Path) -> None:
    settings = MemorySection(gradient_checkpointing_blocks="auto")
    plan = planned(tmp_path, 0, model=LARGE, memory=settings)
    assert set(values(plan)) == {"gradient_checkpointing_blocks"}
    assert "all of them, and training still needs" in str(plan.choices[0])
    assert is_wanted(plan.config) is False  # it is solved now
    streamed = MemorySection(gradient_checkpointing_blocks="auto", enable_group_offload=True)
    assert planned(tmp_path, 0, memory=streamed).config.memory.gradient_checkpointing_blocks is None


def test_a_cpu_streams_nothing(tmp_path: Path) -> None:
    bare = Machine("", 0.0, (0, 0), 16e9, 4)
    plan = planned(tmp_path, 0, bare, model=LARGE, memory=MemorySection(memory_budget="auto"))
    assert plan.memory.limit_bytes == 16e9
    assert values(plan)["base_model_precision"] == "nf4-bnb"
    assert "enable_group_offload" not in values(plan)
    unknown = Machine("Some unheard-of card", 20e9, (9, 9), 64e9, 4)
    assert budget_card(plan.config, unknown).memory_bytes == 20e9


def test_table_of_cards(tmp_path: Path) -> None:
    for model in (LARGE, ModelSection(model_family="ltxvideo", model_type="lora", model_flavour="0.9.5")):
        # Whatever is set: the table tells what would be needed.
        config = run_of(tmp_path, model=model, precision=PrecisionSection(base_model_precision="nf4-bnb"))
        rows = tabulate_cards(config, data(), ROOMY)
        assert tuple(row.size_gb for row in rows) == SIZES_GB == (10, 12, 16, 24, 48, 80, 141)
        assert all(row.verdict == "fits" and row.peak_bytes <= 0.9 * row.size_gb * 1e9 for row in rows)
        rooms = [row.most_clips for row in rows if not row.streamed and row.precision == "no_change"]
        assert rooms == sorted(rooms)
    assert rows[-1].recomputed == 0
    assert tabulate_cards(config, None, ROOMY) == []
    assert CARDS["rtx3090"].memory_bytes > 24e9  # sizes of the table are on the safe side
