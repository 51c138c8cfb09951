"""Rules about the optimizer, through the whole reading of a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.optimizer_settings import optimizer_arguments
from simpletuner.config.resolve import examine
from simpletuner.config.sections.optimizer import SDNQ, OptimizerSection
from simpletuner.config.table import option_table
from simpletuner.core.errors import UserError

BASE = {"model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 10, "lora_rank": 4}
RELEASE = {"optimizer_release_gradients": True}


def findings(folder: Path, **options: Any) -> list[str]:
    (folder / "clips").mkdir(exist_ok=True)
    data = [{"id": "a", "type": "local", "instance_data_dir": "clips", "dataset_type": "video"}]
    (folder / "multidatabackend.json").write_text(json.dumps(data))
    (folder / "config.json").write_text(json.dumps({**BASE, **options}))
    found = examine(["--config", str(folder / "config.json")], {}, folder)
    return [f"{problem.severity.name} {problem}" for problem in found.problems]


@pytest.mark.parametrize(
    ("options", "severity", "part"),
    [
        ({"learning_rate": 0.1}, "WARNING", "a few of them ruin a model. Adapters learn at 5e-5"),
        ({"optimizer": "prodigy"}, "WARNING", "multiplies what it finds. Set learning_rate to 1"),
        ({"optimizer": "prodigy", "learning_rate": 1, "max_grad_norm": 1}, "NOTE", "gradients are not clipped"),
        ({"optimizer": "optimi-stableadamw", "max_grad_norm": 1}, "NOTE", "gradients are not clipped"),
        ({"optimizer": "muon", "prodigy_steps": 5}, "ERROR", "prodigy_steps has no effect with optimizer muon"),
        ({"optimizer": "adamw_schedulefree", "lr_scheduler": "cosine"}, "WARNING", "falling rate only slows it"),
        ({"optimizer": "adamw_schedulefree", "use_ema": True}, "ERROR", "It samples and saves an average already"),
        ({**RELEASE, "gradient_accumulation_steps": 2}, "ERROR", "with gradient_accumulation_steps = 2"),
        ({**RELEASE, "grad_clip_method": "norm"}, "ERROR", "The norm of all gradients is known only when"),
        ({**RELEASE, "optimizer": "soap"}, "ERROR", "optimizer_release_gradients with optimizer = \"soap\""),
        ({**RELEASE, "optimizer_cpu_offload_method": "cpu"}, "ERROR", "takes all gradients together"),
        ({"optimizer": "bnb-lion", "optimizer_cpu_offload_method": "cpu"}, "ERROR", "bnb-…-paged move their own state"),
        ({"optimizer": "muon", "fuse_optimizer": True}, "ERROR", "kernels for torch-adamw, torch-adam, torch-sgd"),
        ({**RELEASE, "set_grads_to_none": False}, "ERROR", "Released gradients are dropped"),
        ({"gradient_precision": "fp32"}, "NOTE", "nothing is added up"),
        ({"optimizer": "torch-adam", "gradient_precision": "fp32"}, "NOTE", "are float32 anyway"),
        ({"optimizer": "bnb-adagrad8bit-paged"}, "ERROR", "no paged Adagrad. Use bnb-adagrad8bit or"),
        ({"optimizer": "dadaptation"}, "ERROR", "adamw_schedulefree is its successor"),
        ({"optimizer": "adafactor"}, "ERROR", "optimi-stableadamw is its successor"),
        ({"optimizer": "optimi-muon"}, "ERROR", "It must be one of: adamw_bf16,"),
    ],
)  # fmt: skip
def test_told(options: dict[str, Any], severity: str, part: str, tmp_path: Path) -> None:
    assert [text.split()[0] for text in findings(tmp_path, **options) if part in text] == [severity]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "prodigy", "learning_rate": 1, "prodigy_steps": 5},
        {"optimizer": "adamw_schedulefree", "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 2},
        {"optimizer": "ao-adamw8bit", **RELEASE},
        {"optimizer": "optimi-stableadamw", "grad_clip_method": "norm", **RELEASE},
        {"gradient_precision": "fp32", "gradient_accumulation_steps": 2, "set_grads_to_none": False},
        {"optimizer": "torch-sgd", "fuse_optimizer": True, "optimizer_cpu_offload_method": "cpu"},
    ],
)
def test_nothing_to_tell(options: dict[str, Any], tmp_path: Path) -> None:
    words = ("optimizer", "gradient", "learning_rate", "lr_scheduler")
    assert not [text for text in findings(tmp_path, **options) if any(word in text for word in words)]


def test_every_name_of_sdnq_is_refused_with_a_reason() -> None:
    refused = option_table()["optimizer"].facts.refused_values
    assert not set(SDNQ) & set(OPTIMIZERS)
    assert all("format of its own" in refused[name] for name in SDNQ)


def test_switches_reach_the_constructor() -> None:
    assert optimizer_arguments(OptimizerSection(optimizer="torch-sgd", fuse_optimizer=True))["fused"] is True
    assert optimizer_arguments(OptimizerSection(optimizer="prodigy", prodigy_steps=9))["adapts_steps"] == 9
    with pytest.raises(UserError):
        optimizer_arguments(OptimizerSection(optimizer="adamw_bf16", prodigy_steps=9))


def test_an_optimizer_that_limits_itself_is_not_clipped() -> None:
    assert OptimizerSection(optimizer="prodigy", max_grad_norm=1.0).clip_limit == 0.0
    assert OptimizerSection(optimizer="adamw_bf16", max_grad_norm=1.0).clip_limit == 1.0
