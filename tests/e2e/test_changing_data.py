"""Data sets that join, leave, and are cut anew in each epoch: a stopped run goes on as the undisturbed one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from projects import Project

from simpletuner.config.resolve import resolve_config
from simpletuner.data.world import write_world
from simpletuner.recipes.train import train_from_config


@pytest.fixture
def changing(project: Project) -> Project:
    """Four clips cut anew in each epoch of two steps; four others join after the first."""
    entries = json.loads(project.datasets.read_text())
    entries[0] |= {"crop": True, "crop_style": "random", "vae_cache_clear_each_epoch": True, "resolution": 32}
    write_world(project.folder / "late", clips=4, width=96, height=64, num_frames=12, frame_rate=12.0, seed=7)
    late = {**entries[0], "id": "late", "instance_data_dir": str(project.folder / "late"), "start_step": 3}
    late |= {"cache_dir_vae": str(project.folder / "cache" / "late"), "vae_cache_clear_each_epoch": False}
    project.datasets.write_text(json.dumps([entries[0], late, entries[1]]))
    return project


def losses(project: Project, name: str, *runs: int) -> list[Any]:
    """Loss of each step after training to each of `runs` steps, one start after the other."""
    for steps in runs:
        words = [f"output_dir={project.folder / name}", f"max_train_steps={steps}", "resume_from_checkpoint=latest"]
        config = resolve_config(["--config", str(project.config), *words], {}, project.folder)
        assert train_from_config(config) == 0
    lines = (project.folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_the_undisturbed_one(changing: Project) -> None:
    whole = losses(changing, "whole", 8)
    assert losses(changing, "parts", 1, 5, 8) == whole
    journal = (changing.folder / "whole" / "journal.jsonl").read_text()
    assert "late joins with epoch 2, which begins after step 2" in journal
    assert not list((changing.folder / "cache" / "vae").rglob("clip*.safetensors"))
    assert list((changing.folder / "cache" / "late").rglob("clip*.safetensors"))
