"""The LyCORIS file: what it must hold, what is read differently from how it is written, and every finding."""

# ruff: noqa: E501 - one finding per line reads as a table

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.lycoris_file import LycorisReading, read_lycoris
from simpletuner.core.errors import Severity

GOOD = {
    "algo": "lokr",
    "multiplier": 0.5,
    "full_matrix": True,
    "linear_alpha": 1,
    "factor": 16,
    "apply_preset": {
        "target_module": ["LTXAttention", "FeedForward"],
        "module_algo_map": {"FeedForward": {"factor": 8}},
    },
}


def read(folder: Path, content: Any) -> LycorisReading:
    path = folder / "lycoris_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return read_lycoris(path, "lycoris_config.json", "ltxvideo")


def test_good_file(tmp_path: Path) -> None:
    reading = read(tmp_path, GOOD)
    assert reading.problems == ()
    settings = reading.settings
    assert settings is not None
    assert (settings.algo, settings.multiplier, settings.factor, settings.full_matrix) == ("lokr", 0.5, 16, True)
    assert settings.apply_preset.target_module == ["LTXAttention", "FeedForward"]
    assert settings.apply_preset.module_algo_map["FeedForward"].factor == 8


def test_attention_means_this_models_attention(tmp_path: Path) -> None:
    """The widely copied preset would leave the attention layers out."""
    preset = {"target_module": ["Attention", "FeedForward"], "module_algo_map": {"Attention": {"factor": 16}}}
    reading = read(tmp_path, {**GOOD, "apply_preset": preset})
    assert [problem.severity for problem in reading.problems] == [Severity.NOTE]
    assert "the class Attention is read as LTXAttention" in str(reading.problems[0])
    assert reading.settings is not None
    assert reading.settings.apply_preset.target_module == ["LTXAttention", "FeedForward"]
    assert set(reading.settings.apply_preset.module_algo_map) == {"LTXAttention"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"algo": None}, "error: lycoris_config.json: algo is missing. A LyCORIS file names algo, multiplier"),
        ({"multiplier": None}, "multiplier is missing"),
        ({"linear_alpha": None}, "linear_alpha is missing"),
        ({"full_matrix": None}, "linear_dim is missing. Only LoKr with full_matrix: true, full and ia3 do without a dimension."),
        ({"algo": "lokrr"}, "error: lycoris_config.json:2: algo = 'lokrr'. It must be one of: lokr, loha"),
        ({"algo": "lokrr"}, "Did you mean 'lokr'?"),
        ({"algo": 3}, "algo = 3. It must be one of"),
        ({"multiplier": "much"}, "error: lycoris_config.json:3: multiplier = 'much'."),
        ({"multiplier": 0}, "warning: lycoris_config.json:3: multiplier = 0. The adapter would have no effect."),
        ({"linear_dim": 0}, "linear_dim = 0."),
        ({"factr": 4}, "warning: lycoris_config.json:18: unknown key 'factr'. Neither this program nor the LyCORIS library knows it. Did you mean 'factor'?"),
        ({"linear_alpha": 4}, "note: lycoris_config.json:5: linear_alpha = 4 is read as 1."),
        ({"algo": "loha", "linear_dim": 64}, "linear_dim = 64 with loha. LoHa becomes unstable above 32."),
        ({"apply_preset": {"target_module": ["Attenton"]}}, "the model has no layers of class 'Attenton'."),
        ({"apply_preset": {"target_module": ["FeedForwrd"]}}, "Did you mean 'FeedForward'?"),
        ({"apply_preset": {"module_algo_map": {"FeedForward": {"algo": "lohr"}}}}, "algo = 'lohr'."),
        ({"apply_preset": {"target_module": "Attention"}}, "apply_preset.target_module = 'Attention'."),
        ({"apply_preset": ["Attention"]}, "apply_preset = ['Attention']."),
        ({"algo": "tlora"}, "algo = 'tlora'. It cannot be trained: its rank follows the time step"),
        ({"apply_preset": {"target_name": ["*.to_q"]}}, "target_name '*.to_q' is no regular expression"),
        ({"algo": "loha"}, "linear_dim is missing."),
        ({"apply_preset": {"module_algo_map": {"FeedForward": {"algo": "locon"}}}}, "linear_dim is missing for FeedForward."),
        ({"something": 4}, "unknown key 'something'. Neither this program nor the LyCORIS library knows it. Remove it."),
        ({"conv_dim": 4}, "note: lycoris_config.json:18: conv_dim has no effect: the model has no convolutions"),
        ({"algo": "loha", "linear_dim": 8}, "note: lycoris_config.json:4: full_matrix, factor with loha has no effect"),
        ({"algo": "ia3", "rank_dropout": 0.1}, "rank_dropout with ia3 has no effect"),
        ({"dropout": 0.1}, "dropout with lokr has no effect"),
        ({"train_norm": True}, "train_norm = true. The model's norms are RMSNorm, which LyCORIS cannot adapt."),
        ({"algo": "boft", "linear_dim": 4, "bypass_mode": True}, "bypass_mode = true with boft."),
        ({"dora_wd": True, "bypass_mode": True}, "dora_wd = true with bypass_mode = true."),
        ({"algo": "dylora", "linear_dim": 6}, "linear_dim = 6 with block_size = 4. DyLoRA trains its rank block by block, so that it must be a multiple of a block. Set linear_dim to 8, or block_size to 1."),
        ({"apply_preset": {"module_algo_map": {"FeedForward": {"algo": "full", "factor": 8}}}}, "factor with full has no effect"),
    ],
)  # fmt: skip
def test_findings(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    content = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    if change.get("linear_alpha") == 4:
        content["linear_dim"] = 10000
    told = [f"{problem.severity.value}: {problem}" for problem in read(tmp_path, content).problems]
    assert any(text in found for found in told), told


@pytest.mark.parametrize(
    ("text", "part"), [("[]", "the file holds no object"), ("{", "not valid JSON"), ("\udc80", "")]
)
def test_odd_files(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    reading = read_lycoris(path, "file.json", "ltxvideo")
    assert reading.settings is None
    assert part in str(reading.problems[0])


@pytest.mark.parametrize("algo", ["full", "ia3"])
def test_kinds_without_a_size_want_none(tmp_path: Path, algo: str) -> None:
    reading = read(tmp_path, {"algo": algo, "multiplier": 1.0, "linear_alpha": 1})
    assert reading.problems == ()
    assert reading.settings is not None


def test_other_spellings_are_understood_in_groups_too(tmp_path: Path) -> None:
    preset = {"target_module": ["Attention"], "module_algo_map": {"FeedForward": {"algo": "OFT", "linear_dim": 4}}}
    settings = read(tmp_path, {**GOOD, "apply_preset": preset}).settings
    assert settings is not None
    assert settings.kinds == ("lokr", "diag-oft")


def test_a_setting_of_the_whole_file_may_be_meant_for_a_group(tmp_path: Path) -> None:
    content = {**GOOD, "algo": "loha", "linear_dim": 4, "full_matrix": False,
               "apply_preset": {"module_algo_map": {"FeedForward": {"algo": "lokr"}}}}  # fmt: skip
    assert [str(problem) for problem in read(tmp_path, content).problems] == []


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        ({"algo": "boft", "linear_dim": 4}, ["base_model_precision=int8-quanto"], "LyCORIS boft with base_model_precision = \"int8-quanto\". Only lokr, loha, locon, lora, dylora work beside"),
        ({"apply_preset": {"module_algo_map": {"FeedForward": {"algo": "full"}}}}, ["base_model_precision=nf4-bnb"], "LyCORIS full with base_model_precision"),
        ({"dora_wd": True}, ["base_model_precision=fp8-torchao"], "dora_wd = true in the LyCORIS file with base_model_precision"),
        ({"algo": "ia3"}, ["mixed_precision=no", "optimizer=adamw_bf16"], "LyCORIS ia3 with optimizer = \"adamw_bf16\" and mixed_precision = no"),
        ({"decompose_both": True}, ["init_lokr_norm=0.001"], "init_lokr_norm = 0.001 with decompose_both = true"),
        ({"algo": "loha", "linear_dim": 4}, ["init_lokr_norm=0.001"], "init_lokr_norm has no effect: the LyCORIS file trains loha"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_run_is_told_at_once(desk, change: dict[str, Any], options: list[str], told: str) -> None:
    desk.write("config/lycoris_config.json", json.dumps({**GOOD, **change}))
    texts = desk.texts("lora_type=lycoris", *options)
    assert any(told in text for text in texts), texts
    # With an adapter that is not used, nothing of it matters.
    assert not any(told in text for text in desk.texts("lora_type=standard", *options))


def test_missing_file_is_told_with_its_neighbours(desk) -> None:
    desk.write("config/lycoris_small.json", "{}")
    texts = desk.texts("lora_type=lycoris", "lycoris_config=config/lycoris.json")
    assert any("there is no such file" in t and "Files near by: config/lycoris_small.json" in t for t in texts), texts


def test_the_run_gets_the_settings(desk) -> None:
    desk.write("config/lycoris_config.json", json.dumps(GOOD))
    config = desk.examine("lora_type=lycoris").config
    assert config is not None
    assert config.lycoris is not None
    assert config.lycoris.factor == 16
    assert desk.examine("lora_type=standard").config.lycoris is None
