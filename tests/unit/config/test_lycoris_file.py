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
        ({"full_matrix": None}, "linear_dim is missing. Only full_matrix: true does without a dimension."),
        ({"algo": "lokrr"}, "error: lycoris_config.json:2: algo = 'lokrr'. It must be one of: lokr, loha"),
        ({"algo": "lokrr"}, "Did you mean 'lokr'?"),
        ({"algo": 3}, "algo = 3. It must be one of"),
        ({"multiplier": "much"}, "error: lycoris_config.json:3: multiplier = 'much'."),
        ({"multiplier": 0}, "warning: lycoris_config.json:3: multiplier = 0. The adapter would have no effect."),
        ({"linear_dim": 0}, "linear_dim = 0."),
        ({"factr": 4}, "warning: lycoris_config.json:18: unknown key 'factr'. It is handed to the library as it stands. Did you mean 'factor'?"),
        ({"linear_alpha": 4}, "note: lycoris_config.json:5: linear_alpha = 4 is read as 1."),
        ({"algo": "loha", "linear_dim": 64}, "linear_dim = 64 with loha. LoHa becomes unstable above 32."),
        ({"apply_preset": {"target_module": ["Attenton"]}}, "the model has no layers of class 'Attenton'."),
        ({"apply_preset": {"target_module": ["FeedForwrd"]}}, "Did you mean 'FeedForward'?"),
        ({"apply_preset": {"module_algo_map": {"FeedForward": {"algo": "lohr"}}}}, "algo = 'lohr'."),
        ({"apply_preset": {"target_module": "Attention"}}, "apply_preset.target_module = 'Attention'."),
        ({"apply_preset": ["Attention"]}, "apply_preset = ['Attention']."),
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
