"""The option table may not change by accident, and nothing in it may be read by nobody.

When a change is meant: `python tests/contracts/test_options_frozen.py` writes the list anew, and the commit says why.
"""

from __future__ import annotations

import re
from pathlib import Path

from simpletuner.config.table import OptionSpec, dataset_tables, option_table
from simpletuner.config.values import show

FROZEN = Path(__file__).with_name("options_frozen.txt")
PACKAGE = Path(__file__).resolve().parents[2] / "simpletuner"

# Options that act while the configuration is read, inside `config/` itself.
READ_BY_CONFIG = {
    "cache_dir_text", "user_prompt_library", "ignore_final_epochs", "report_to", "disabled",
    "validation_prompt_library",
    "parquet_caption_column", "parquet_filename_column", "optimizer_config", "optimizer_beta1", "optimizer_beta2",
    "adam_epsilon", "adam_weight_decay", "ltx_train_mode", "enable_group_offload", "group_offload_type",
    "group_offload_blocks_per_group", "gradient_checkpointing_interval", "gradient_checkpointing_blocks",
    "crepa_feature_source", "crepa_use_backbone_features", "crepa_self_flow", "scheduled_sampling_sampler",
    "scheduled_sampling_order", "scheduled_sampling_reflexflow", "fuse_optimizer", "prodigy_steps",
    "vae_cache_clear_each_epoch", "slider_lora_target", "validation_adapter_path", "validation_adapter_name",
    "validation_adapter_strength", "validation_adapter_config",
}  # fmt: skip


def frozen_lines() -> list[str]:
    """One line per option: what a user can see of it."""
    tables = {"": option_table(), **{f"{kind}.": table for kind, table in dataset_tables().items()}}
    return [f"{prefix}{_line(spec)}" for prefix, table in tables.items() for spec in table.values()]


def _line(spec: OptionSpec) -> str:
    facts = spec.facts
    status = "planned" if facts.planned else "refused" if facts.refused else "note" if facts.accepted_note else "built"
    default = "required" if spec.default is ... or spec.kind == "block" else show(spec.default)
    values = "/".join(spec.known_choices) or spec.kind
    return " | ".join([spec.name, spec.section, values, default, spec.range_text, "/".join(facts.aliases), status])


def test_table_is_what_was_agreed() -> None:
    assert FROZEN.read_text(encoding="utf-8").splitlines() == frozen_lines(), __doc__


def test_every_built_option_is_read_by_somebody() -> None:
    """An option that works is looked at outside the table; with a single built word there is nothing to look at."""
    read = {
        word
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("config", "cli")
        for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))
    }
    unread = [
        spec.name
        for table in (option_table(), *dataset_tables().values())
        for spec in table.values()
        if not (spec.facts.planned or spec.facts.refused or spec.facts.accepted_note)
        and not (spec.kind == "choice" and len(spec.choices) == 1)
        and spec.name not in READ_BY_CONFIG
        and spec.name.rpartition(".")[2] not in read
    ]
    assert unread == []


if __name__ == "__main__":
    FROZEN.write_text("\n".join(frozen_lines()) + "\n", encoding="utf-8")
