"""The GPU benchmark: every part costs only itself, and its ways through the program exist."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def benchmark_file(repository: Path) -> Any:
    specification = importlib.util.spec_from_file_location("gpu_benchmark", repository / "benchmarks" / "gpu.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["gpu_benchmark"] = module
    specification.loader.exec_module(module)
    return module


def test_a_part_that_fails_or_takes_too_long_costs_itself(benchmark_file: Any) -> None:
    programs = {
        "rate": 'print(\'noise\'); print(\'{"matrix_flops": 5.0, "device": "card"}\')',
        "breaks": "raise SystemExit('no memory')",
        "hangs": "import time; time.sleep(60)",
        "mute": "print('not json')",
        "last": 'print(\'{"seconds": 0.5, "share": 0.25}\')',
    }
    seen: list[float] = []

    def command(part: Any, rate: float) -> list[str]:
        seen.append(rate)
        return [sys.executable, "-S", "-c", programs[part.name]]

    parts = [benchmark_file.Part(name, "step", 0.4 if name == "hangs" else 30.0) for name in programs]
    told: list[int] = []
    rows = benchmark_file.run_parts(parts, 100.0, lambda rows: told.append(len(rows)), command)
    assert [row.get("failed", "")[:14] for row in rows] == [
        "",
        "exit 1: no mem",
        "not done after",
        "no result: not",
        "",
    ]
    assert seen == [0.0, 5.0, 5.0, 5.0, 5.0]
    assert told == [1, 2, 3, 4, 5]
    assert "| last | 0.5000 |  |  |  | 25.0% |" in benchmark_file.table(rows)
    left = benchmark_file.run_parts(parts[:1], 1.0, lambda rows: None, command)
    assert left[0]["failed"] == "left out: no time left"


def test_the_table_of_the_issue_is_all_there(benchmark_file: Any) -> None:
    names = " ".join(part.name for part in benchmark_file.PARTS)
    wanted = "1,296|2,688|6,144|recomputed|all weights|8-bit|4-bit|streamed|encode|13B|int8dq|fp8-native"
    for part in wanted.split("|"):
        assert part in names
    assert benchmark_file.BUDGET_SECONDS < 600
    assert {part.what for part in benchmark_file.PARTS} == {"rate", "step", "encode", "attention", "linears", "tests"}


@pytest.mark.slow
def test_miniature_runs_every_way(benchmark_file: Any, repository: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.md"
    command = [sys.executable, "benchmarks/gpu.py", "--miniature", "--budget", "3000", "--output", str(result)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert result.read_text(encoding="utf-8").count("\n| ") == 1 + len(benchmark_file.PARTS)
