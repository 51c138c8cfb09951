"""What the attention kernel needs of a machine, and what the rules say about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.catalogs.attention import ATTENTION, REFUSED
from simpletuner.config.resolve import examine
from simpletuner.core.errors import Severity
from simpletuner.recipes.kernels import compiler_problems, kernel_problems


@pytest.mark.parametrize(
    ("mechanism", "card", "capability", "part"),
    [
        ("diffusers", "", (0, 0), ""),
        ("native-math", "Apple M3 Max", (0, 0), ""),
        ("cudnn", "NVIDIA GeForce RTX 4090", (8, 9), ""),
        ("cudnn", "", (0, 0), "this machine has no GPU. It computes on NVIDIA and AMD cards only"),
        ("cudnn", "Apple M3 Max", (0, 0), "this machine has Apple M3 Max"),
        ("flash-attn-3", "NVIDIA GeForce RTX 4090", (8, 9), "has compute capability 8.9. It needs 9.0 or higher"),
        ("flash-attn", "AMD Instinct MI300X", (0, 0), "Install flash-attn>=2.6.3"),
        ("native-flash", "Tesla T4", (7, 5), "Set attention_mechanism to diffusers"),
    ],
)
def test_what_is_missing(mechanism: str, card: str, capability: tuple[int, int], part: str) -> None:
    found = [str(problem) for problem in kernel_problems(mechanism, card, capability, "attention_mechanism")]
    assert bool(found) == bool(part)
    assert part in " ".join(found)


def findings(folder: Path, **options: Any) -> list[str]:
    base = {"model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 10, "data_backend_config": "d.json"}
    (folder / "clips").mkdir(exist_ok=True)
    data = [{"id": "a", "type": "local", "instance_data_dir": "clips", "dataset_type": "video"}]
    (folder / "d.json").write_text(json.dumps(data))
    (folder / "config.json").write_text(json.dumps({**base, **options}))
    found = examine(["--config", str(folder / "config.json")], {}, folder).problems
    return [f"{problem.severity.name} {problem}" for problem in found]


@pytest.mark.parametrize(
    ("options", "severity", "part"),
    [
        ({"attention_mechanism": "cudnn", "mixed_precision": "no", "optimizer": "torch-adamw"}, "ERROR", "16-bit"),
        ({"attention_mechanism": "sageattention"}, "NOTE", "training attends by PyTorch's own choice"),
        ({"sageattention_usage": "training"}, "ERROR", "no gradient passes through SageAttention"),
        ({"attention_mechanism": "flash-attn-hub"}, "ERROR", "Use flash-attn or flash-attn-3"),
        ({"dynamo_backend": "inductor", "base_model_precision": "nf4-bnb"}, "ERROR", "cannot be compiled"),
        ({"dynamo_backend": "inductor", "dynamo_mode": "reduce-overhead"}, "ERROR", "would overwrite"),
        ({"dynamo_backend": "cudagraphs"}, "ERROR", "Use inductor with dynamo_mode reduce-overhead"),
        ({"dynamo_mode": "default"}, "NOTE", "dynamo_mode without dynamo_backend has no effect"),
        ({"attention_mechanism": "flash-atn"}, "ERROR", "Did you mean 'flash-attn'?"),
    ],
)
def test_rules(options: dict[str, Any], severity: str, part: str, tmp_path: Path) -> None:
    assert [text.split()[0] for text in findings(tmp_path, **options) if part in text] == [severity]


def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(compiler_problems("eager", "mps", "x")) == []
    monkeypatch.setenv("PATH", "")
    found = [str(problem) for problem in compiler_problems("inductor", "cpu", "x")]
    assert "there is no C++ compiler (g++ or clang++)" in found[0]


def test_every_refused_kernel_says_what_to_use_instead() -> None:
    assert not set(REFUSED) & set(ATTENTION)
    assert all(reason.rpartition("; use ")[2].split()[0] in ATTENTION for reason in REFUSED.values())
    assert Severity.NOTE in {p.severity for p in kernel_problems("cudnn", "", (0, 0), "x", Severity.NOTE)}
