"""Options of the evaluation loss: told when there is nothing to measure, or no time to measure it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.resolve import examine
from simpletuner.core.errors import Severity

CLIPS = {"id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": "clips"}
HELD = {**CLIPS, "id": "held", "dataset_type": "eval", "instance_data_dir": "held", "cache_dir_vae": "cache/held"}
TEXTS = {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "texts"}


def found(folder: Path, sets: list[dict[str, Any]], **options: Any) -> dict[Severity, str]:
    for name in ("clips", "held"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps([*sets, TEXTS]))
    base = {
        "model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 10, "validation_disable": True,
        "pretrained_model_name_or_path": str(folder), "data_backend_config": "data.json",
    }  # fmt: skip
    words = [f"{name}={json.dumps(value)}" for name, value in {**base, **options}.items()]
    problems = examine(words, {}, folder).problems
    return {
        severity: " | ".join(str(problem) for problem in problems if problem.severity is severity)
        for severity in Severity
    }


def test_options_without_a_set(tmp_path: Path) -> None:
    told = found(tmp_path, [CLIPS], eval_steps_interval=10, num_eval_images=2)
    assert "eval_steps_interval, num_eval_images without effect: there is no data set" in told[Severity.WARNING]
    assert not told[Severity.ERROR]


def test_a_set_without_an_interval(tmp_path: Path) -> None:
    told = found(tmp_path, [CLIPS, HELD])
    assert "evaluation set held without eval_steps_interval" in told[Severity.NOTE]
    told = found(tmp_path, [CLIPS, HELD], eval_early_stop_patience=3)
    assert "eval_early_stop_patience = 3 without eval_steps_interval" in told[Severity.ERROR]
    told = found(tmp_path, [CLIPS, HELD], eval_epoch_interval=0.5, eval_early_stop_patience=3)
    assert not any(told.values()) or "eval" not in " ".join(told.values())


@pytest.mark.parametrize(("name", "expected"), [("hled", "held"), ("clips", "there is: held")])
def test_a_set_that_is_not_there(tmp_path: Path, name: str, expected: str) -> None:
    told = found(tmp_path, [CLIPS, HELD], eval_steps_interval=5, eval_dataset_id=name)[Severity.ERROR]
    assert f'eval_dataset_id = "{name}"' in told
    assert expected in told


def test_what_is_idle_is_told(tmp_path: Path) -> None:
    told = found(tmp_path, [CLIPS, HELD], eval_steps_interval=5, eval_loss_disable=True)
    assert "eval_loss_disable is set" in told[Severity.WARNING]
    told = found(tmp_path, [CLIPS, HELD], eval_steps_interval=5, eval_early_stop_min_delta=0.1)
    assert "eval_early_stop_min_delta without" in told[Severity.NOTE]


def test_image_to_video_is_measured_as_text_to_video(tmp_path: Path) -> None:
    moving = {**CLIPS, "video": {"num_frames": 17, "is_i2v": True}}
    told = found(tmp_path, [moving, HELD], eval_steps_interval=5, ltx_i2v_prob=0.5)
    assert "measured both ways" in told[Severity.NOTE]


def test_clip_is_refused_with_the_reason(tmp_path: Path) -> None:
    told = found(tmp_path, [CLIPS], evaluation_type="clip")[Severity.ERROR]
    assert "CLIP compares single pictures with words" in told
