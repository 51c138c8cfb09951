"""The guide's own files, untouched: what is refused by name, what is noticed, and what runs."""

# ruff: noqa: E501 - one finding per line reads as a table

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from simpletuner.config.documents import read_json
from simpletuner.config.resolve import examine, resolve_config
from simpletuner.core.errors import Severity

# The guide tells how to write these two files; without them nothing else is wrong.
MISSING = [
    "config/config.json:12: lycoris_config = \"config/ltxvideo/lycoris_config.json\": there is no such file",
    "config/config.json:48: webhook_config = \"config/ltxvideo/webhook.json\": there is no such file",
]  # fmt: skip
NOTED = [
    "config/config.json:46: base_model_precision = fp8-torchao: weights are kept in fp8 and multiplied in bf16 on every "
    "machine; fp8-native multiplies in fp8",
    "config/config.json:5: aspect_bucket_rounding = 2",
    "config/ltxvideo/multidatabackend.json:31: text-embeds: write_batch_size = 128",
    "config/config.json:9: offload_during_startup = true",
    "config/config.json:31: resolution = 800 is only the default: the data sets have their own (disney-black-and-white: 480)",
    "config/config.json:42: max_grad_norm = 0: gradients are not clipped",
    "config/config.json:45: lr_warmup_steps = 400000 is equal to max_train_steps: read as one cosine from 5e-05 to 4e-07 "
    "without warm-up",
    "config/config.json:53: delete_problematic_images = true",
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
    assert findings[Severity.ERROR] == sorted(MISSING)
    assert findings[Severity.WARNING] == []
    assert findings[Severity.NOTE] == sorted(NOTED)


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


def test_it_resolves_with_the_two_files_it_names(guide_desk: Path) -> None:
    (guide_desk / "config/ltxvideo/lycoris_config.json").write_text(
        '{"algo": "lokr", "multiplier": 1.0, "full_matrix": true, "linear_alpha": 1, "factor": 16, "apply_preset": '
        '{"target_module": ["Attention", "FeedForward"], "module_algo_map": {"FeedForward": {"factor": 8}}}}'
    )
    (guide_desk / "config/ltxvideo/webhook.json").write_text(
        '{"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/x", "log_level": "info"}'
    )
    config = resolve_config([], {}, guide_desk)
    assert (config.schedule.lr_scheduler, config.schedule.lr_end) == ("cosine", 4e-7)
    assert config.datasets[0].video.num_frames == 125
    assert config.datasets[0].cache_dir_vae == "cache/vae/ltxvideo/disney-black-and-white"
    assert config.validation.resolutions == ((768, 512),)
    assert config.lycoris is not None
    assert config.lycoris.apply_preset.target_module == ["LTXAttention", "FeedForward"]
    assert (config.average.use_ema, config.average.ema_validation) == (True, "ema_only")
    assert config.precision.base_model_precision == "fp8-torchao"


@pytest.mark.parametrize(
    ("fragment", "refused"),
    [
        ("fragment_int8_quanto.jsonc", []),
        ("fragment_preview.json", []),
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


def test_plan_of_the_untouched_files(guide_desk: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """What is not built or missing is told, and the rest of the run is planned all the same."""
    from simpletuner.cli import plan

    monkeypatch.chdir(guide_desk)
    assert plan.run(["--card", "h200"]) == 2
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for expected in (
        "max_train_steps 400000 config/config.json:13",
        "train_batch_size 8 config/config.json:26",
        'lr_scheduler "cosine" config/config.json:44',
        "learning_rate 5e-05 config/config.json:41",
        "the clips were not read, or cannot be trained as they are; assumed is a full batch of 480x480@121 (3,600 tokens)",
        "length 400,000 steps",
        "step up to 8 clips",
        "checkpoints 400, every 1000 steps and at the end; 5 kept",
        "validation 4001 times 1 video",
    ):
        assert expected in lines, expected
    assert any("400,000 steps at this pace: about" in line and "days on an H200" in line for line in lines)
    assert any(line.startswith("This cannot be trained yet: ") for line in lines)


def test_check_of_the_untouched_files_adds_what_lies_outside_them(
    guide_desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the findings above: no clips, a long run, and the machine."""
    from simpletuner.recipes.check import check_run

    monkeypatch.chdir(guide_desk)
    checked = check_run([], {}, guide_desk, lambda event: None, card="h200")
    more = [str(problem) for problem in checked.problems if problem not in checked.examination.problems]
    for text in ("no samples detected in dataset", "400,000 steps at this pace"):
        assert any(text in found for found in more), text
