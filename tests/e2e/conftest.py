"""A small project as a user has it: clips with captions, a checkpoint, two configuration files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from projects import Project


@pytest.fixture
def project(tmp_path: Path, miniature: Path) -> Project:
    """Four clips of 96x64 at 12 fps, the small checkpoint, six steps of batch 2."""
    from simpletuner.data.world import write_world

    clips, output = tmp_path / "clips", tmp_path / "output"
    write_world(clips, clips=4, width=96, height=64, num_frames=12, frame_rate=12.0, seed=1)
    config = {
        "model_family": "ltxvideo",
        "model_type": "lora",
        "pretrained_model_name_or_path": str(miniature),
        "output_dir": str(output),
        "data_backend_config": str(tmp_path / "multidatabackend.json"),
        "max_train_steps": 6,
        "train_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "optimizer": "torch-adamw",
        "mixed_precision": "no",
        "vae_dtype": "fp32",
        "lora_rank": 4,
        "checkpoint_step_interval": 3,
        "validation_disable": True,
        "tokenizer_max_length": 32,
    }
    datasets = [
        {
            "id": "clips",
            "type": "local",
            "dataset_type": "video",
            "instance_data_dir": str(clips),
            "cache_dir_vae": str(tmp_path / "cache" / "vae"),
            "caption_strategy": "textfile",
            "resolution": 64,
            "resolution_type": "pixel",
            "video": {"num_frames": 9, "min_frames": 9},
        },
        {
            "id": "text",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": str(tmp_path / "cache" / "text"),
        },
    ]
    made = Project(tmp_path, tmp_path / "config.json", tmp_path / "multidatabackend.json", clips, output)
    made.config.write_text(json.dumps(config, indent=2))
    made.datasets.write_text(json.dumps(datasets, indent=2))
    return made
