"""Training sees the same numbers whether clips and captions were encoded ahead, on demand, or never kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from simpletuner.caching.store import entry_files
from simpletuner.config.resolve import resolve_config
from simpletuner.recipes.train import train_from_config

NEVER_KEPT = ("vae_cache_disable=true", "text_cache_disable=true")
ON_DEMAND = ("vae_cache_preprocess=false", "text_cache_ondemand=true", "text_embed_full_cache=true")
PACKED = ("cache_format=shards", "compress_disk_cache=true", "keep_vae_loaded=true")


@pytest.fixture
def project(tmp_path: Path, miniature: Path) -> Path:
    """Three clips and a configuration for two steps."""
    (tmp_path / "clips").mkdir()
    for number in range(3):
        with av.open(str(tmp_path / f"clips/{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for index in range(10):
                picture = np.full((64, 64, 3), 40 * number + 9 * index, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        (tmp_path / f"clips/{number}.txt").write_text(f"clip number {number}")
    clips = {
        "id": "clips", "dataset_type": "video", "instance_data_dir": str(tmp_path / "clips"), "resolution": 64,
        "resolution_type": "pixel", "minimum_image_size": 0, "caption_strategy": "textfile", "repeats": 1,
        "video": {"num_frames": 9, "min_frames": 9},
    }  # fmt: skip
    texts = {"id": "texts", "dataset_type": "text_embeds", "default": True}
    (tmp_path / "datasets.json").write_text(json.dumps([clips, texts]))
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_family": "ltxvideo",
                "model_type": "lora",
                "max_train_steps": 3,
                "lora_rank": 4,
                "pretrained_model_name_or_path": str(miniature),
                "data_backend_config": "datasets.json",
                "validation_disable": True,
                "mixed_precision": "no",
                "optimizer": "torch-adamw",
                "caption_dropout_probability": 0.3,
            }
        )
    )
    return tmp_path


def losses(project: Path, name: str, *words: str) -> list[Any]:
    config = resolve_config(
        ["--config", str(project / "config.json"), f"output_dir={project / name}", *words], {}, project
    )
    assert train_from_config(config) == 0
    lines = (project / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_run_without_a_cache_equals_one_with(project: Path) -> None:
    assert losses(project, "ahead") == losses(project, "never", *NEVER_KEPT)
    assert len(list(entry_files(project / "ahead"))) > 5
    assert list((project / "never").rglob("*-????????????????.safetensors")) == []


@pytest.mark.slow
def test_on_demand_and_packed_caches_give_the_same_run(project: Path) -> None:
    ahead = losses(project, "ahead")
    assert losses(project, "later", *ON_DEMAND) == ahead
    assert losses(project, "packed", *PACKED) == ahead
    assert losses(project, "exact", "vae_cache_dtype=fp32") != ahead
