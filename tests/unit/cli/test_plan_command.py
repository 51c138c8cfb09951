"""`simpletuner plan` and `train --dry-run` as a person meets them: tables, JSON, exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from simpletuner.cli import plan, plan_tables, train
from simpletuner.config.table import option_table
from simpletuner.core.errors import UserError

PROMPT = "A long prompt that tells of a river, a boat, a bridge, the evening light and the wind."


@pytest.fixture
def project(tmp_path: Path, miniature: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three clips, in order."""
    from simpletuner.data.world import write_world

    monkeypatch.chdir(tmp_path)
    for name in ("ENV", "CONFIG_PATH", "CONFIG_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    write_world(tmp_path / "clips", clips=3, width=96, height=64, num_frames=12, frame_rate=12.0, seed=1)
    (tmp_path / "config").mkdir()
    options = {
        "model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 30, "validation_prompt": PROMPT,
        "pretrained_model_name_or_path": str(miniature), "validation_num_video_frames": 9, "lora_rank": 4,
        "validation_resolution": "64x64", "validation_step_interval": 0, "validation_num_inference_steps": 2,
        "checkpoint_step_interval": 10, "checkpoints_total_limit": 2,
    }  # fmt: skip
    entries = [
        {"id": "clips", "dataset_type": "video", "instance_data_dir": "clips", "resolution": 64,
         "resolution_type": "pixel", "video": {"num_frames": 9}},
        {"id": "texts", "dataset_type": "text_embeds"},
    ]  # fmt: skip
    (tmp_path / "config/config.json").write_text(json.dumps(options, indent=2))
    (tmp_path / "config/multidatabackend.json").write_text(json.dumps(entries))
    return tmp_path


def test_tables(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--card", "rtx4090", "learning_rate=2e-4"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "Options that differ from their default",
        "lora_rank 4 config/config.json:8",
        "learning_rate 0.0002 command line",
        "96x64@9 3 3 9 128×2×2×3 12 3 3 1",
        "length 30 steps = 10.0 epochs of 3 steps (3 draws)",
        "checkpoints 3, every 10 steps and at the end; 2 kept",
        "validation 2 times 1 video",
    ):
        assert line in lines, line
    assert any(line.startswith("RTX 4090 24 GB 25.2 GB") and line.endswith("fits") for line in lines)
    assert any(line.startswith("This can be trained") for line in lines)
    assert not any("train_batch_size" in line for line in lines)
    assert max(len(line) for line in lines) < 300
    written = [path for path in (project / "output").rglob("*") if path.is_file()]
    assert all("index" in path.name for path in written), "a plan remembers headers and writes nothing else"


def test_everything(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--all", "--card", "cpu"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in option_table())


def test_dry_run_is_the_plan(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--json", "--card", "h200"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert train.run(["--dry-run", "--json", "--card", "h200"]) == 0
    again = json.loads(capsys.readouterr().out)
    for document in (planned, again):
        for volume in document["disk"]["volumes"]:
            volume.pop("free_bytes")
    assert planned == again
    assert planned["can_start"] is True
    assert planned["length"] == {
        "steps": 30, "epochs": 10.0, "samples_per_step": 1, "checkpoints": 3, "checkpoints_kept": 2, "validations": 2,
        "videos_each": 1, "evaluations": 0, "evaluated_clips": 0,
    }  # fmt: skip
    assert planned["data"]["buckets"][0]["latent_shape"] == [128, 2, 2, 3]
    assert planned["cards"][0]["rates"].startswith("measured: ceilings only")
    assert planned["cards"][0]["memory"]["verdict"] == "fits"
    assert planned["options"]["lora_rank"] == {"value": "4", "origin": "config/config.json:8"}


def test_image_to_video_is_evaluated_both_ways(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So the plan counts the clips set apart twice, as the run measures them."""
    entries = json.loads((project / "config/multidatabackend.json").read_text())
    apart = {**entries[0], "id": "apart", "dataset_type": "eval", "cache_dir_vae": "apart"}
    (project / "config/multidatabackend.json").write_text(json.dumps([*entries, apart]))
    seconds = []
    for mode in ("t2v", "i2v"):
        options = ["--json", "--card", "h200", "eval_steps_interval=10", f"ltx_train_mode={mode}"]
        assert plan.run(options) == 0, capsys.readouterr().out
        seconds.append(json.loads(capsys.readouterr().out)["cards"][0]["seconds"]["evaluation"])
    assert seconds[1] == pytest.approx(2 * seconds[0])


def test_all_cards(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--card=all"]) == 0
    out = capsys.readouterr().out
    assert all(label in out for label in ("H200", "RTX 3060", "Apple", "CPU"))


def test_plan_with_errors_tells_the_rest(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--card", "h200", "ramtorch=true", "lora_rnak=4"]) == 2
    out = capsys.readouterr().out
    assert "The plan is for the run without the values they name." in out
    assert "96x64@9" in out
    assert "Did you mean 'lora_rank'?" in out
    assert "This cannot be trained yet: 2 errors" in out


def test_plan_without_clips(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--card", "h200", "--no-data"]) == 0
    assert "assumed is a full batch of 64x64@9 (8 tokens)" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "text"), [(["--card", "h900"], "unknown card 'h900'"), (["--card"], "needs a name")])
def test_mistakes(project: Path, words: list[str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        plan.run(words)


def test_nothing_to_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no configuration"):
        plan.run([])


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--help"]) == 0
    assert "--card" in capsys.readouterr().out


def test_tables_fit_the_terminal_without_a_broken_figure() -> None:
    names = ("bucket", "files", "latents", "draws", "of up to", "remark")
    rows = [("128x64@25", "4,000", "128×4×2×4", "31", "1", "a remark that is much longer than any figure here")]
    for width in (40, 60, 80, 200):
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=width, color_system=None, highlight=False)
        plan_tables._table(console, names, rows, numbers=range(1, 5))
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        for cell in (*names, *rows[0][:5]):
            assert any(cell in line for line in lines), (width, cell)
        headings = sum("bucket" in line for line in lines)  # the first column stands in each part
        assert headings == {40: 3, 60: 2, 80: 1, 200: 1}[width], out.getvalue()
