"""Rules about what is trained, through the whole reading of a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.resolve import examine
from simpletuner.core.errors import Severity

BASE = {"model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 10, "lora_rank": 4}


def findings(folder: Path, **options: Any) -> tuple[list[str], Any]:
    (folder / "clips").mkdir(exist_ok=True)
    data = [{"id": "a", "type": "local", "instance_data_dir": "clips", "dataset_type": "video"}]
    (folder / "multidatabackend.json").write_text(json.dumps(data))
    (folder / "config.json").write_text(json.dumps({**BASE, **options}))
    found = examine(["--config", str(folder / "config.json")], {}, folder)
    return [f"{problem.severity.name} {problem}" for problem in found.problems], found.config


def told(texts: list[str], part: str) -> list[str]:
    return [text.split()[0] for text in texts if part in text]


@pytest.mark.parametrize(
    ("options", "part", "severity"),
    [
        ({"use_dora": True, "base_model_precision": "int8-quanto"}, "DoRA needs the full weights", Severity.ERROR),
        ({"use_dora": True, "base_model_precision": "int8-bnb"}, "DoRA needs the full weights", Severity.ERROR),
        ({"use_dora": True, "lora_init_type": "pissa"}, "DoRA measures the base weight", Severity.ERROR),
        ({"lora_init_type": "olora", "base_model_precision": "nf4-bnb"}, "does not hold in full", Severity.ERROR),
        ({"lora_init_type": "pissa"}, "the saved adapter has rank 8", Severity.NOTE),
        ({"lora_init_type": "loftq"}, "It cannot be used", Severity.ERROR),
        (
            {"lora_init_type": "pissa", "lora_format": "comfyui", "lora_alpha": 3},
            "could not continue exactly",
            Severity.ERROR,
        ),
        ({"model_type": "full", "base_model_precision": "int8-torchao"}, "quantized weights cannot", Severity.ERROR),
        ({"model_type": "full", "optimizer": "torch-adamw"}, "this optimizer wants float32", Severity.ERROR),
        ({"model_type": "full", "init_lora": "a.safetensors"}, "no adapter that could start", Severity.ERROR),
        ({"model_type": "full"}, "lora_rank with model_type full has no effect", Severity.NOTE),
        ({"init_lora": "missing.safetensors"}, "there is no such file", Severity.ERROR),
        ({"init_lora_step": 4}, "init_lora_step = 4 without init_lora", Severity.ERROR),
        ({"init_lora_ema": "missing.safetensors"}, "without use_ema", Severity.ERROR),
        ({"init_lora": "missing.safetensors", "init_lora_step": 10}, "nothing would be left to train", Severity.ERROR),
        ({"validation_adapter_path": "missing.safetensors"}, "there is no such file", Severity.ERROR),
        ({"validation_adapter_config": [{"path": "x", "strong": 1}]}, "unknown key 'strong'", Severity.ERROR),
        ({"validation_adapter_config": [{"path": "config.json", "strength": 0}]}, "strength 0", Severity.ERROR),
        ({"validation_method": "external-script"}, "without validation_external_script", Severity.ERROR),
        ({"peft_lora_target_modules": "missing.json"}, "there is no such file", Severity.ERROR),
    ],
)
def test_told(options: dict[str, Any], part: str, severity: Severity, tmp_path: Path) -> None:
    assert told(findings(tmp_path, **options)[0], part) == [severity.name]


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True, "base_model_precision": "int8-torchao"},
        {"lora_init_type": "pissa", "lora_format": "comfyui", "lora_alpha": 8},
        {"model_type": "full", "optimizer": "adamw_bf16"},
        {"model_type": "full", "optimizer": "torch-adamw", "mixed_precision": "no"},
        {"lora_format": "comfyui", "use_dora": True},
    ],
)
def test_allowed(options: dict[str, Any], tmp_path: Path) -> None:
    texts, config = findings(tmp_path, **options)
    assert [text for text in texts if text.startswith("ERROR")] == []
    assert config is not None


def test_a_layer_list_comes_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "targets.json").write_text('["to_q", "ff.net.2",]  // two kinds')
    _, config = findings(tmp_path, peft_lora_target_modules="targets.json")
    assert config.adapter.peft_lora_target_modules == ["to_q", "ff.net.2"]
    _, config = findings(tmp_path, peft_lora_target_modules=["to_k"])
    assert config.adapter.peft_lora_target_modules == ["to_k"]
    (tmp_path / "targets.json").write_text('{"to_q": 1}')
    assert told(findings(tmp_path, peft_lora_target_modules="targets.json")[0], "no list of layer names") == ["ERROR"]


def test_the_file_to_start_from_is_found_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "start.safetensors").write_bytes(b"")
    _, config = findings(tmp_path, init_lora="start.safetensors")
    assert config.adapter.init_lora == str(tmp_path / "start.safetensors")
