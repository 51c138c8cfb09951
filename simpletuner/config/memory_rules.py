"""Rules about what stays in the card's memory: streaming of blocks, and what goes with it."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.commands import read_size
from simpletuner.config.draft import Draft, Rule, note
from simpletuner.core.errors import Problem

# Each switch, and the settings that only count with it.
_OWNERS = {
    "enable_group_offload": (
        "group_offload_type", "group_offload_blocks_per_group", "group_offload_use_stream", "group_offload_to_disk_path"
    ),
    "musubi_blocks_to_swap": ("musubi_block_swap_device",),
}  # fmt: skip


def _streaming(draft: Draft) -> Iterator[Problem]:
    switch = next((name for name in _OWNERS if draft.values[name]), None)
    if switch is None:
        return
    told = draft.told(switch)
    if not draft.values["gradient_checkpointing"]:
        yield Problem(
            f"{told} with gradient_checkpointing = false",
            "The backward pass would keep every block's weights on the device, so nothing would be saved",
            "Set gradient_checkpointing to true",
            draft.place(switch),
        )
    elif _recomputes_some(draft):
        yield Problem(
            f"{told} with only some blocks recomputed",
            "What is streamed must be recomputed, or the backward pass keeps its weights on the device",
            "Remove gradient_checkpointing_interval and gradient_checkpointing_blocks",
            draft.place("gradient_checkpointing_blocks", "gradient_checkpointing_interval"),
        )
    if draft.values["model_type"] == "full":
        yield Problem(
            f"{told} with model_type = full",
            "Streamed weights only travel one way: what is trained must stay on the device",
            f"Remove {switch}, or train an adapter (model_type lora)",
            draft.place(switch),
        )


def _recomputes_some(draft: Draft) -> bool:
    return (draft.values["gradient_checkpointing_interval"] or 1) > 1 or (
        draft.values["gradient_checkpointing_blocks"] not in (None, "auto")
    )


def _recomputing(draft: Draft) -> Iterator[Problem]:
    if not draft.values["gradient_checkpointing"] and _recomputes_some(draft):
        yield note(
            "gradient_checkpointing_interval and gradient_checkpointing_blocks have no effect without "
            "gradient_checkpointing",
            where=draft.place("gradient_checkpointing_blocks", "gradient_checkpointing_interval"),
        )
    elif None not in (draft.values["gradient_checkpointing_interval"], draft.values["gradient_checkpointing_blocks"]):
        yield note(
            "gradient_checkpointing_blocks wins over gradient_checkpointing_interval",
            where=draft.place("gradient_checkpointing_interval"),
        )


def _leaves(draft: Draft) -> Iterator[Problem]:
    if draft.values["enable_group_offload"] and draft.values["group_offload_type"] == "leaf_level":
        yield note(
            "group_offload_type = leaf_level streams single blocks",
            "Going backward a block needs all its weights together, so smaller pieces would not lower the peak",
            where=draft.place("group_offload_type"),
        )


def _idle(draft: Draft) -> Iterator[Problem]:
    for owner, settings in _OWNERS.items():
        idle = [name for name in settings if name in draft.given]
        if idle and not draft.values[owner]:
            yield note(f"{', '.join(idle)} without {owner} has no effect", where=draft.place(idle[0]))


def _budget(draft: Draft) -> Iterator[Problem]:
    if draft.values["memory_budget"] not in (None, "", "auto"):
        yield from _no_size(
            draft, "memory_budget", "It is a size such as 10GB or 22GiB, or auto for all of this machine's card"
        )


def _cache_limit(draft: Draft) -> Iterator[Problem]:
    yield from _no_size(
        draft, "cache_memory_limit", "It is a size such as 500MB or 2GB, or 0 to keep nothing in memory"
    )


def _no_size(draft: Draft, option: str, rule: str) -> Iterator[Problem]:
    """The problem of an option that cannot be read as a size."""
    try:
        read_size(draft.values[option])
    except ValueError:
        yield Problem(draft.told(option), rule, "Correct it", draft.place(option))


def _whole_models(draft: Draft) -> Iterator[Problem]:
    if draft.values["enable_model_cpu_offload"] and draft.values["model_type"] == "full":
        yield note(
            "enable_model_cpu_offload has no effect with model_type full",
            "Only frozen weights leave the card while videos are decoded",
            where=draft.place("enable_model_cpu_offload"),
        )


def _kept_attention(draft: Draft) -> Iterator[Problem]:
    if draft.values["gradient_checkpointing_keep_attention"] and not draft.values["gradient_checkpointing"]:
        yield note(
            "gradient_checkpointing_keep_attention has no effect without gradient_checkpointing",
            where=draft.place("gradient_checkpointing_keep_attention"),
        )


MEMORY_RULES: tuple[Rule, ...] = (
    Rule(
        ("gradient_checkpointing_keep_attention", "gradient_checkpointing"),
        _kept_attention,
        "only recomputed blocks have attention to keep",
    ),
    Rule(("cache_memory_limit",), _cache_limit, "what stays in memory is limited by a size"),
    Rule(("memory_budget",), _budget, "a budget is a size, or auto"),
    Rule(("enable_model_cpu_offload", "model_type"), _whole_models, "only frozen weights are sent away"),
    Rule(
        (
            "enable_group_offload", "musubi_blocks_to_swap", "gradient_checkpointing",
            "gradient_checkpointing_interval", "gradient_checkpointing_blocks", "model_type",
        ),
        _streaming,
        "streamed blocks must be checkpointed and frozen",
    ),
    Rule(
        ("gradient_checkpointing", "gradient_checkpointing_interval", "gradient_checkpointing_blocks"),
        _recomputing,
        "an interval counts only with checkpointing, and a number wins over it",
    ),
    Rule(("enable_group_offload", "group_offload_type"), _leaves, "the smallest streamed group is a block"),
    Rule(("enable_group_offload", "musubi_blocks_to_swap"), _idle, "settings of streaming count only with it"),
)  # fmt: skip
