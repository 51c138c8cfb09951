"""A run that starts from an adapter file: weights, step count, order of the clips and average go on."""

from __future__ import annotations

import json

import pytest
import torch
from projects import Project
from safetensors import safe_open
from safetensors.torch import load_file

from simpletuner.cli.main import main

ADAPTER = "pytorch_lora_weights.safetensors"
AVERAGED = {"use_ema": "true", "ema_update_interval": 1, "lora_format": "comfyui", "lora_alpha": 3}


@pytest.mark.slow
def test_steps_and_averages_go_on_where_the_file_ends(project: Project) -> None:
    first, second = project.folder / "first", project.folder / "second"
    # At so low a rate the weights stay, so that what was taken over can be told from what was trained.
    assert main(project.arguments(output_dir=first, max_train_steps=3, learning_rate=3e-2, **AVERAGED)) == 0
    going_on = {"init_lora": first / ADAPTER, "init_lora_step": 3, "init_lora_ema": first / f"ema/{ADAPTER}"}
    words = project.arguments(output_dir=second, max_train_steps=5, learning_rate=1e-12, **going_on, **AVERAGED)
    assert main(words) == 0
    lines = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 5]
    assert json.loads((second / "checkpoint-5/training_state.json").read_text())["batches"]["step"] == 5
    one, other = load_file(first / ADAPTER), load_file(second / ADAPTER)
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    # An average over constant weights comes nearer to them, from where the file has left it.
    before, after = load_file(first / f"ema/{ADAPTER}"), load_file(second / f"ema/{ADAPTER}")
    gaps = [sum((tensors[name] - one[name]).norm().item() for name in one) for tensors in (before, after)]
    assert 0 < gaps[1] < gaps[0]
    with safe_open(second / ADAPTER, "pt") as handle:
        assert handle.metadata()["global_step"] == "5"
