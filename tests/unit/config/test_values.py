"""One value, however it is written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.config.table import dataset_tables, option_table
from simpletuner.config.values import UnreadableError, is_absent, read_value, refusal

TABLE = option_table()
BOOLEANS = [spec for spec in TABLE.values() if spec.kind == "bool"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("learning_rate", "1e-4", 1e-4),
        ("max_train_steps", "1e3", 1000),
        ("max_train_steps", 400000.0, 400000),
        ("lora_rank", " '8' ", 8),
        ("model_family", "LTXVideo", "ltxvideo"),
        ("lr_scheduler", "cosine_with_warmup", "cosine"),
        ("caption_strategy", "instance_prompt", "instanceprompt"),
        ("validation_resolution", 512, "512"),
        ("peft_lora_target_modules", "to_q, to_k", ["to_q", "to_k"]),
        ("peft_lora_target_modules", '["to_q"]', ["to_q"]),
        ("validation_negative_prompt", "", ""),
        ("optimizer", "torch-adamw", "torch-adamw"),
    ],
)
def test_spellings(name: str, raw: Any, value: Any) -> None:
    assert read_value(TABLE[name], raw) == value


@pytest.mark.parametrize("spec", BOOLEANS, ids=lambda spec: spec.name)
def test_string_booleans(spec: Any) -> None:
    for word in ("true", "True", "yes", "on", "1", 1, True):
        assert read_value(spec, word) is True
    for word in ("false", "FALSE", "no", "off", "0", 0, False):
        assert read_value(spec, word) is False
    with pytest.raises(UnreadableError, match="true or false"):
        read_value(spec, "maybe")


@pytest.mark.parametrize(
    ("name", "raw", "rule"),
    [
        ("lora_rank", 0, "at least 1 and at most 1024"),
        ("lora_rank", 2.5, "whole number"),
        ("lora_rank", True, "whole number"),
        ("learning_rate", "nan", "number"),
        ("learning_rate", float("inf"), "number"),
        ("learning_rate", 0, "above 0"),
        ("lora_dropout", 1, "below 1"),
        ("lr_scheduler", "cosin", "one of"),
        ("output_dir", ["a"], "text"),
        ("peft_lora_target_modules", 3, "list"),
    ],
)
def test_rules(name: str, raw: Any, rule: str) -> None:
    with pytest.raises(UnreadableError, match=rule):
        read_value(TABLE[name], raw)


def test_dataset_number_or_word() -> None:
    spec = dataset_tables()["video"]["frame_rate"]
    assert read_value(spec, "source") == "source"
    assert read_value(spec, "24") == 24
    with pytest.raises(UnreadableError):
        read_value(spec, 0)


@pytest.mark.parametrize("spec", TABLE.values(), ids=lambda spec: spec.name)
def test_default_is_readable_and_never_refused(spec: Any) -> None:
    """What the table says is the default can be written into a file."""
    if spec.default is not None:
        assert read_value(spec, spec.default) == spec.default
    assert refusal(spec, spec.default) is None


@pytest.mark.parametrize("spec", [s for s in TABLE.values() if s.facts.planned], ids=lambda spec: spec.name)
def test_planned_options_take_what_switches_them_off(spec: Any) -> None:
    for value in (spec.default, False, "", "none", *spec.facts.neutral):
        assert refusal(spec, value) is None


def test_planned_value_is_refused_with_what_is_missing_and_the_fix() -> None:
    rule, fix = refusal(TABLE["layersync_enabled"], True) or ("", "")
    assert rule == "Not built yet: this auxiliary loss"
    assert fix == "Remove it, or set false"
    rule, fix = refusal(TABLE["base_model_precision"], "int4-torchao") or ("", "")
    assert rule == "Not built yet: the quantization level 'int4-torchao'"
    assert fix.startswith("Use no_change, bf16, int8-quanto")
    rule, _ = refusal(TABLE["base_model_precision"], "fp8-quanto") or ("", "")
    assert rule.startswith("It cannot be used: it does not work with LTX-Video")
    rule, _ = refusal(TABLE["gradient_checkpointing_segment_stride"], 4) or ("", "")
    assert rule.startswith("It cannot be used: ")


@settings(max_examples=700, deadline=None)
@given(name=st.sampled_from(sorted(TABLE)), raw=ANYTHING)
def test_any_value_is_read_or_named_unreadable(name: str, raw: Any) -> None:
    spec = TABLE[name]
    if is_absent(spec, raw):
        return
    try:
        value = read_value(spec, raw)
    except UnreadableError:
        return  # the message is shown to be complete in test_resolve
    told = refusal(spec, value)
    assert told is None or all(told)
