"""CREPA and scheduled sampling through the command line, with a small real vision encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import Project
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from simpletuner.cli.main import main

ADAPTER = "pytorch_lora_weights.safetensors"


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    return tmp_path / "dinov2"


def train(project: Project, name: str, **options: Any) -> list[dict[str, Any]]:
    """The loss terms of each step of a run in a folder of its own, with common caches."""
    output = project.folder / name
    assert main(project.arguments(output_dir=output, **options)) == 0
    return [json.loads(line)["terms"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_cached_features_teach_what_live_ones_teach(project: Project, encoder: Path) -> None:
    options = {
        "crepa_enabled": "true", "crepa_block_index": 1, "crepa_encoder": encoder, "crepa_encoder_image_size": 64,
        "scheduled_sampling_max_step_offset": 2, "scheduled_sampling_probability": 1.0, "max_train_steps": 2,
    }  # fmt: skip
    cached = train(project, "cached", **options)
    live = train(project, "live", crepa_cache_features="false", **options)
    for one, other in zip(cached, live, strict=True):
        assert one["crepa_loss"] == pytest.approx(other["crepa_loss"], abs=5e-3)
    assert sum(one["rollout/forwards"] for one in cached) >= 1
    plain = train(project, "plain", max_train_steps=2)
    assert "crepa_loss" not in plain[0]
    files = [load_file(project.folder / name / ADAPTER) for name in ("cached", "plain")]
    assert files[0].keys() == files[1].keys()
    assert not all(torch.equal(files[0][key], files[1][key]) for key in files[0])


def test_what_does_not_fit_is_said_before_anything_is_encoded(
    project: Project, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"crepa_enabled": "true", "crepa_encoder": "dinov2_vitx14", "crepa_block_index": 77,
             "scheduled_sampling_max_step_offset": 3, "scheduled_sampling_sampler": "dpm",
             "scheduled_sampling_order": 3}  # fmt: skip
    words = [f"{key}={value}" for key, value in wrong.items()]
    assert main(["check", "--config", str(project.config), *words]) == 2
    told = capsys.readouterr()
    text = " ".join((told.out + told.err).split())
    assert "Did you mean 'dinov2_vits14'?" in text or "Did you mean 'dinov2_vitb14'?" in text
    assert "dpm is built in order 1 or 2" in text
    assert "with a chance of 0" in text
    assert main(["check", "--config", str(project.config), "crepa_enabled=true", f"crepa_encoder={encoder}",
                 "crepa_block_index=77"]) == 2  # fmt: skip
    assert "crepa_block_index = 77, but" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.slow
def test_prior_data_beside_the_clips(project: Project) -> None:
    plain = train(project, "plain", max_train_steps=4)
    assert "regularisation_loss" not in plain[0]
    clips, *rest = json.loads(project.datasets.read_text())
    prior = {**clips, "id": "prior", "is_regularisation_data": True, "cache_dir_vae": str(project.folder / "prior")}
    project.datasets.write_text(json.dumps([clips, prior, *rest]))
    told = train(project, "prior", max_train_steps=4, train_batch_size=4)
    assert all(0 <= terms["regularisation_loss"] < terms["loss"] for terms in told)
    assert any(terms["regularisation_loss"] > 0 for terms in told[1:])
    again = train(project, "again", max_train_steps=4, train_batch_size=4)
    assert again == told
