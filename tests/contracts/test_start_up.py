"""The command line starts without torch, and quickly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "av", "matplotlib", "safetensors"]
PROBE = """
import json, sys
from simpletuner.cli.main import main
code = main(json.loads(sys.argv[1]))
sys.stderr.write("\\nLOADED " + json.dumps([code, [name for name in json.loads(sys.argv[2]) if name in sys.modules]]))
"""
COMMANDS = [
    ([], 0),
    (["--help"], 0),
    (["--version"], 0),
    (["train", "--help"], 0),
    (["check"], 2),
    (["check", "--no-data", "--example", "quickstart"], 2),  # its clips are not in this folder
    (["train", "--dry-run", "--no-data", "--example", "quickstart"], 2),
    (["options"], 0),
    (["options", "lora_rank"], 0),
    (["examples", "list"], 0),
    (["trian"], 2),
    (["configure"], 2),
    (["configure", "--print-questions"], 0),
    (["completion", "bash"], 0),
    (["generate", "--help"], 0),
    (["evaluate", "--help"], 0),
    (["generate", "--run", "nowhere", "--adapter", "nope:0.5", "--prompt", "x"], 2),
    (["train", "--config", "nope.json"], 2),
]


def variables(repository: Path) -> dict[str, str]:
    """Nothing but what the command needs; the Hub is not asked."""
    return {"PYTHONPATH": str(repository), "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize(
    ("words", "code"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_nothing_heavy_is_loaded(words: list[str], code: int, tmp_path: Path, repository: Path) -> None:
    arguments = [sys.executable, "-c", PROBE, json.dumps(words), json.dumps(HEAVY)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=tmp_path, env=variables(repository), check=True
    )
    assert json.loads(done.stderr.rpartition("LOADED ")[2]) == [code, []]


def test_help_and_check_take_well_under_a_second(tmp_path: Path, repository: Path) -> None:
    """Counted in the processor's time, which other work on the machine does not change much."""
    for words in (["--help"], ["check", "--no-data", "--example", "quickstart"]):
        spent = []
        for _ in range(2):
            before = os.times()
            subprocess.run(
                [sys.executable, "-m", "simpletuner", *words],
                capture_output=True,
                cwd=tmp_path,
                env=variables(repository),
                check=False,
            )
            after = os.times()
            spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert min(spent) < 1.5, words
