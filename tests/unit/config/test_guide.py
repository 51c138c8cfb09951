"""The guide's own files, untouched: what is refused by name, what is noticed, and what runs."""

# ruff: noqa: E501 - one finding per line reads as a table

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from simpletuner.config.documents import read_json
from simpletuner.config.resolve import examine, resolve_config
from simpletuner.core.errors import Severity

REFUSED = [
    "config/config.json:11: lora_type = \"lycoris\"",
    "config/config.json:12: lycoris_config = \"config/ltxvideo/lycoris_config.json\"",
    "config/config.json:17: hub_model_id = \"ltxvideo-disney\"",
    "config/config.json:18: push_to_hub = \"true\"",
    "config/config.json:19: push_checkpoints_to_hub = \"true\"",
    "config/config.json:22: report_to = \"wandb\"",
    "config/config.json:46: base_model_precision = \"fp8-torchao\"",
    "config/config.json:48: webhook_config = \"config/ltxvideo/webhook.json\"",
    "config/config.json:49: compress_disk_cache = true",
    "config/config.json:50: use_ema = true",
    "config/config.json:51: ema_validation = \"ema_only\"",
    "config/config.json:52: ema_update_interval = 2",
]  # fmt: skip
NOTED = [
    "config/config.json:3: quantize_via = \"cpu\"",
    "config/config.json:5: aspect_bucket_rounding = 2",
    "config/ltxvideo/multidatabackend.json:31: text-embeds: write_batch_size = 128",
    "config/config.json:20: tracker_project_name = \"lora-training\"",
    "config/config.json:9: offload_during_startup = true",
    "config/config.json:31: resolution = 800 is only the default: the data sets have their own (disney-black-and-white: 480)",
    "config/config.json:42: max_grad_norm = 0: gradients are not clipped",
    "config/config.json:45: lr_warmup_steps = 400000 is equal to max_train_steps: read as one cosine from 5e-05 to 4e-07 "
    "without warm-up",
    "config/config.json:53: delete_problematic_images = \"true\"",
    "config/config.json:55: lora_rank = 128 has no effect with lora_type lycoris",
    "config/ltxvideo/multidatabackend.json:19: disney-black-and-white: video.num_frames = 125 is trained as 121 frames",
]  # fmt: skip


@pytest.fixture
def guide_desk(tmp_path: Path, guide_files: Path) -> Path:
    """A working folder laid out as the guide tells, with the data set file where its config.json says."""
    (tmp_path / "config/ltxvideo").mkdir(parents=True)
    (tmp_path / "datasets/disney-black-and-white").mkdir(parents=True)
    shutil.copy(guide_files / "config.json", tmp_path / "config/config.json")
    shutil.copy(guide_files / "multidatabackend.json", tmp_path / "config/ltxvideo/multidatabackend.json")
    return tmp_path


def found(folder: Path, *words: str) -> dict[Severity, list[str]]:
    problems = examine(words, {}, folder).problems
    return {level: sorted(f"{p.where}: {p.what}" for p in problems if p.severity is level) for level in Severity}


def test_every_finding(guide_desk: Path) -> None:
    findings = found(guide_desk)
    assert findings[Severity.ERROR] == sorted(REFUSED)
    assert findings[Severity.WARNING] == []
    assert findings[Severity.NOTE] == sorted(NOTED)


def test_every_refusal_says_what_is_missing_and_what_to_do(guide_desk: Path) -> None:
    for problem in examine([], {}, guide_desk).problems:
        if problem.severity is Severity.ERROR:
            assert problem.rule.startswith("Not built yet: ")
            assert problem.fix


def test_dataset_file_where_the_guide_writes_it(guide_desk: Path) -> None:
    """The guide writes config/multidatabackend.json, but its config.json looks into config/ltxvideo."""
    (guide_desk / "config/ltxvideo/multidatabackend.json").rename(guide_desk / "config/multidatabackend.json")
    texts = [str(problem) for problem in examine([], {}, guide_desk).problems]
    assert any(
        'data_backend_config = "config/ltxvideo/multidatabackend.json": there is no such file. '
        "Looked at config/ltxvideo/multidatabackend.json"
        in text
        and "Files near by: config/multidatabackend.json." in text
        for text in texts
    )


def test_it_resolves_once_the_refused_options_are_set_aside(guide_desk: Path) -> None:
    words = [
        "lora_type=standard", "lycoris_config=", "hub_model_id=", "push_to_hub=false", "push_checkpoints_to_hub=false",
        "report_to=none", "base_model_precision=no_change", "webhook_config=", "compress_disk_cache=false",
        "use_ema=false", "ema_validation=none", "ema_update_interval=1",
    ]  # fmt: skip
    config = resolve_config(words, {}, guide_desk)
    assert (config.schedule.lr_scheduler, config.schedule.lr_end) == ("cosine", 4e-7)
    assert config.datasets[0].video.num_frames == 125
    assert config.datasets[0].cache_dir_vae == "cache/vae/ltxvideo/disney-black-and-white"
    assert config.validation.resolutions == ((768, 512),)


@pytest.mark.parametrize(
    ("fragment", "refused"),
    [
        ("fragment_int8_quanto.jsonc", ["base_model_precision"]),
        ("fragment_preview.json", ["validation_preview"]),
        ("fragment_custom_finetune.jsonc", []),
    ],
)
def test_fragments(guide_desk: Path, guide_files: Path, fragment: str, refused: list[str]) -> None:
    document = read_json(guide_files / fragment, fragment)
    (guide_desk / "config/config.json").write_text(
        '"model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 10,'
        '"data_backend_config": "config/ltxvideo/multidatabackend.json", '
    )
    words = [f"{key}={value}" for key, value in document.value.items()]
    problems = [p for p in examine(words, {}, guide_desk).problems if p.severity is Severity.ERROR]
    assert [problem.what.split(" = ")[0] for problem in problems] == refused


def test_prompt_library(guide_desk: Path, guide_files: Path) -> None:
    shutil.copy(guide_files / "user_prompt_library.json", guide_desk / "config")
    examination = examine(["user_prompt_library=config/user_prompt_library.json"], {}, guide_desk)
    assert any("10 prompts still hold the placeholder <token>" in problem.what for problem in examination.problems)
