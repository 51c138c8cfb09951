"""`simpletuner cache` on a small project: built without training, told truly, cleared only when asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from simpletuner.cli.cache import run
from simpletuner.core.errors import UserError


@pytest.fixture
def project(tmp_path: Path, miniature: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two clips, a checkpoint and a configuration; the working folder is theirs."""
    monkeypatch.chdir(tmp_path)
    for name in ("ENV", "CONFIG_PATH", "CONFIG_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").mkdir()
    (tmp_path / "clips").mkdir()
    for name, level in (("dark", 20), ("light", 220)):
        with av.open(str(tmp_path / f"clips/{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for _ in range(12):
                picture = np.full((64, 64, 3), level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        (tmp_path / f"clips/{name}.txt").write_text(f"a {name} picture")
    config = {
        "model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 5, "validation_disable": True,
        "pretrained_model_name_or_path": str(miniature), "output_dir": "output",
        "data_backend_config": "config/multidatabackend.json",
    }  # fmt: skip
    clips = {
        "id": "clips", "dataset_type": "video", "instance_data_dir": "clips", "resolution": 64,
        "resolution_type": "pixel", "minimum_image_size": 0, "caption_strategy": "textfile", "repeats": 2,
        "video": {"num_frames": 9, "min_frames": 9},
    }  # fmt: skip
    (tmp_path / "config/config.json").write_text(json.dumps(config))
    (tmp_path / "config/multidatabackend.json").write_text(
        json.dumps([clips, {"id": "texts", "dataset_type": "text_embeds", "default": True}])
    )
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = run([words[0], "--json", *words[1:]])
    return code, json.loads(capsys.readouterr().out)


def counts(reports: list[dict[str, Any]]) -> list[tuple[str, int, int, int, int]]:
    keys = ("name", "wanted", "usable", "missing", "stale")
    return [tuple(report[key] for key in keys) for report in reports]


def test_build_status_verify_and_prune(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "status")[0] == 1
    assert run(["build"]) == 0
    code, reports = ask(capsys, "status")
    assert code == 0
    assert counts(reports) == [("clips", 2, 2, 0, 0), ("captions and prompts", 3, 3, 0, 0)]
    assert not list(project.glob("output/checkpoint-*"))
    # Another setting wants other entries; the old ones are stale until it is asked to remove them.
    code, reports = ask(capsys, "status", "vae_cache_dtype=fp32")
    assert (code, counts(reports)[0]) == (1, ("clips", 2, 0, 2, 2))
    assert run(["build", "vae_cache_dtype=fp32", "cache_format=shards", "compress_disk_cache=true"]) == 0
    assert ask(capsys, "prune", "--dry-run")[1] == {
        "stale": 2, "damaged": 0, "bytes": reports_bytes(ask(capsys, "status")[1]), "removed": False,
    }  # fmt: skip
    assert ask(capsys, "prune", "--yes", "vae_cache_dtype=fp32")[1]["removed"] is True
    assert counts(ask(capsys, "verify", "vae_cache_dtype=fp32")[1])[0] == ("clips", 2, 2, 0, 0)
    assert counts(ask(capsys, "status")[1])[0] == ("clips", 2, 0, 2, 2)


def reports_bytes(reports: list[dict[str, Any]]) -> int:
    return sum(report["stale_bytes"] for report in reports)


def test_verify_finds_what_status_cannot_see(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build"]) == 0
    path = next(path for path in project.rglob("dark-*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert ask(capsys, "status")[0] == 0
    assert run(["verify"]) == 1
    told = capsys.readouterr().out
    assert "damaged  1" in told
    assert "checksum" in told
    with pytest.raises(UserError, match="1 damaged"):
        run(["prune"])  # nobody at the terminal agrees
    assert path.exists()
    assert run(["prune", "--yes"]) == 0
    assert not path.exists()
    assert run(["build"]) == 0
    assert ask(capsys, "verify")[0] == 0


def test_wrong_words_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no such action"):
        run(["clean"])
    assert run(["--help"]) == 0
    assert "prune" in capsys.readouterr().out


def test_a_quantized_base_is_built_told_and_cleared(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optimum.quanto")
    words = ["--base_model_precision=int8-quanto"]
    assert run(["build", *words]) == 0
    assert "quantized to int8-quanto" in capsys.readouterr().out
    (kept,) = (project / "output/cache/quantized").iterdir()
    assert run(["verify", "--json", *words]) == 0
    (base,) = (line for line in json.loads(capsys.readouterr().out) if line["name"] == "quantized base model")
    assert (base["wanted"], base["usable"], base["stale"]) == (1, 1, 0)
    assert base["usable_bytes"] == sum(file.stat().st_size for file in kept.iterdir())

    weights = kept / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert run(["status", *words]) == 0  # headers only
    assert run(["verify", *words]) == 1
    assert "has changed since it was written" in capsys.readouterr().out
    assert run(["prune", "--yes", *words]) == 0
    assert "1 damaged entries" in capsys.readouterr().out
    assert not kept.exists()

    assert run(["build", *words]) == 0
    capsys.readouterr()
    assert run(["prune", "--dry-run", "--json"]) == 0  # without the precision nothing wants it
    assert json.loads(capsys.readouterr().out)["stale"] == 1
    assert run(["status", "--quantized_base_cache=false", *words]) == 0
    assert "stale    1" in capsys.readouterr().out
    assert run(["prune", "--yes"]) == 0
    assert not any((project / "output/cache/quantized").iterdir())
