"""Help and error texts, word for word: a changed sentence shows in the diff of tests/contracts/snapshots/.

When a change is meant: `RECORD_TEXTS=1 pytest tests/contracts/test_texts.py` writes the files anew, and
the commit says why. Machine-dependent parts (paths, times, the Hub) are kept out of the projects here.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from simpletuner.cli.main import COMMANDS, main
from simpletuner.recipes import check
from simpletuner.runtime.machine import Machine

SNAPSHOTS = Path(__file__).with_name("snapshots")
RECORD = os.environ.get("RECORD_TEXTS") == "1"
PROMPT = "A long prompt that tells of a river, a boat, a bridge, the evening light and the wind."

OPTIONS: dict[str, Any] = {
    "model_family": "ltxvideo",
    "model_type": "lora",
    "pretrained_model_name_or_path": "model",
    "max_train_steps": 100,
    "validation_prompt": PROMPT,
}
DATASETS: list[Any] = [
    {"id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": "clips"},
    {"id": "texts", "type": "local", "dataset_type": "text_embeds", "cache_dir": "texts"},
]
LYCORIS = {"algo": "lokr", "multiplier": 1, "linear_dim": 16, "linear_alpha": 16}

# Name of the project -> what is wrong with it: options, keys of the clips' entry, files, arguments.
PROJECTS: dict[str, dict[str, Any]] = {
    "unknown option": {"options": {"lora_rnak": 4}},
    "unknown flag": {"words": ["--learning_rte=1e-4"]},
    "key of the data set file": {"options": {"repeats": 3}},
    "text for a number": {"options": {"train_batch_size": "many"}},
    "number out of range": {"options": {"lora_rank": -4}},
    "word not in the list": {"options": {"lr_scheduler": "cosin"}},
    "given twice": {"options": {"validation_steps": 1, "validation_step_interval": 2}},
    "missing family": {"options": {"model_family": None, "model_type": None}},
    "no length": {"options": {"max_train_steps": 0}},
    "two lengths": {"options": {"num_train_epochs": 3}},
    "whole run as warm-up": {"options": {"lr_scheduler": "cosine", "lr_warmup_steps": 100}},
    "warm-up beyond the run": {"options": {"lr_scheduler": "linear", "lr_warmup_steps": 200}},
    "end above the beginning": {"options": {"lr_scheduler": "polynomial", "lr_end": 1}},
    "clipping off": {"options": {"max_grad_norm": 0}},
    "fp16": {"options": {"mixed_precision": "fp16"}},
    "fp8 of quanto": {"options": {"base_model_precision": "fp8-quanto"}},
    "optimizer and precision": {"options": {"mixed_precision": "no"}},
    "old optimizer": {"options": {"optimizer": "adamw8bit"}},
    "shift twice": {"options": {"flow_schedule_auto_shift": True, "flow_schedule_shift": 3}},
    "two kinds of offload": {"options": {"enable_group_offload": True, "enable_model_cpu_offload": True}},
    "masked loss": {"options": {"masked_loss_probability": 0.5}},
    "interval of checkpointing": {"options": {"gradient_checkpointing_segment_stride": 4}},
    "deletion": {"options": {"delete_problematic_images": "true"}},
    "odd video size": {"options": {"validation_resolution": "720x400", "validation_num_video_frames": 125}},
    "no video size": {"options": {"validation_resolution": "big"}},
    "no prompt": {"options": {"validation_prompt": ""}},
    "short prompt": {"options": {"validation_prompt": "a cat"}},
    "missing prompt library": {"options": {"user_prompt_library": "nope.json"}},
    "odd prompt library": {"options": {"user_prompt_library": "prompts.json"},
                           "files": {"prompts.json": {"a": "a <token>", "b": 3}}},
    "lycoris without file": {"options": {"lora_type": "lycoris", "lora_rank": 128}},
    "odd lycoris file": {
        "options": {"lora_type": "lycoris", "lycoris_config": "lycoris.json"},
        "files": {"lycoris.json": {**LYCORIS, "algo": "lokrr", "apply_preset": {"target_module": ["Attention", "Ff"]}}},
    },
    "odd webhook file": {"options": {"webhook_config": "hook.json"},
                         "files": {"hook.json": {"webhook_type": "raw", "webhook_url": "https://x.example/secret"}}},
    "layers that do not exist": {"options": {"peft_lora_target_modules": ["to_q", "to_qq"]}},
    "missing model": {"options": {"pretrained_model_name_or_path": "model2"}},
    "125 frames": {"clips": {"video": {"num_frames": 125}}},
    "too few frames asked for": {"clips": {"video": {"num_frames": 49, "min_frames": 25}}},
    "unknown key of an entry": {"clips": {"resolutoin": 480}},
    "key outside its block": {"clips": {"num_frames": 49}},
    "pixels for megapixels": {"clips": {"resolution_type": "area", "resolution": 480}},
    "missing clip folder": {"clips": {"instance_data_dir": "clisp"}},
    "no data set": {"clips": {"disabled": "true"}},
    "masks": {"clips": {"dataset_type": "conditioning", "conditioning_type": "mask"}},
    "broken JSON": {"text": '{"model_family": "ltxvideo",, }'},
    "no object": {"text": "[1, 2]"},
}  # fmt: skip


@pytest.fixture(scope="module")
def words_of(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> Any:
    """What `check` prints for a project by its name; the data are left alone."""
    import contextlib
    import io

    def say(name: str) -> str:
        folder = tmp_path_factory.mktemp("project")
        wrong = PROJECTS[name]
        (folder / "clips").mkdir()
        (folder / "model").symlink_to(miniature, target_is_directory=True)
        (folder / "config").mkdir()
        options = {key: value for key, value in {**OPTIONS, **wrong.get("options", {})}.items() if value is not None}
        text = wrong.get("text") or json.dumps(options, indent=2)
        (folder / "config/config.json").write_text(text)
        entries = [{**DATASETS[0], **wrong.get("clips", {})}, DATASETS[1]]
        (folder / "config/multidatabackend.json").write_text(json.dumps(entries, indent=2))
        for path, content in wrong.get("files", {}).items():
            (folder / path).write_text(json.dumps(content, indent=2))
        before = Path.cwd()
        told = io.StringIO()
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                code = main(["check", "--no-data", *wrong.get("words", [])])
        finally:
            os.chdir(before)
        return _settled(f"{told.getvalue()}exit code {code}\n", folder)

    return say


def _settled(text: str, folder: Path) -> str:
    """The text without what differs between machines."""
    text = text.replace(str(folder.resolve()), "FOLDER").replace(str(folder), "FOLDER")
    # Findings of the forecast belong to no project: rates of cards may change.
    blocks = re.split(r"\n(?=\S)", text)
    kept = [block for block in blocks if not re.match(r"(note|warning|error): .*(memory|disk|validation takes)", block)]
    return re.sub(r": [^:\n]*\.\n(exit code \d)", r"\n\1", "\n".join(kept))


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENV", "CONFIG_PATH", "CONFIG_BACKEND", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(check, "find_machine", lambda: Machine("", 0.0, (0, 0), 16e9, 4))


def compare(name: str, text: str) -> None:
    """With the stored file; writes it when asked to."""
    path = SNAPSHOTS / f"{name}.txt"
    if RECORD:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"no snapshot {path.name}; {__doc__}"
    assert text == path.read_text(encoding="utf-8"), __doc__


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([name, "--help"] if name else ["--help"])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 0
    text = capsys.readouterr().out
    if name == "train":  # its list of options is frozen elsewhere, and long
        text = text[: text.index("Options that work today")]
    compare(f"help_{name or 'simpletuner'}", text)


def test_check(words_of: Any) -> None:
    """All broken projects in one file, in the order above."""
    compare("check", "\n".join(f"=== {name}\n{words_of(name)}" for name in PROJECTS))


def test_other_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    told = []
    for words in (["check"], ["trian"], ["train", "--config", "nope.json"], ["check", "--env", "nope"],
                  ["options", "lora_rnak"], ["check", "lonely"], ["examples", "show", "nope"]):  # fmt: skip
        code = main(words)
        streams = capsys.readouterr()
        told.append(f"=== simpletuner {' '.join(words)}\n{streams.out}{streams.err}exit code {code}\n")
    text = re.sub(r"Available: .*", "Available: …", _settled("\n".join(told), tmp_path))
    compare("mistakes", text)
