"""From the command to the first optimizer step, cold and warm, split into its parts, beside a bare program.

    python benchmarks/start_up.py [--rounds 3] [--write NAME]

Each round trains two steps of a small project as whole processes: cold (no cache) and warm (everything encoded), by
`simpletuner train` and by `bare_start.py`, in turn. The parts come from the time stamps of the run's own journal. A
figure is the median over the rounds. Both may keep bytecode, as on a user's machine; a first start of each, which
compiles it, is not counted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

CLIPS, WIDTH, HEIGHT, FRAMES, RATE = 16, 256, 192, 49, 25.0
ORDER = ("imports, configuration and clips", "captions", "latents", "model", "first step")
PARTS = (*ORDER, "total", "bare, total", "ratio")


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def write_project(folder: Path) -> Path:
    """A small checkpoint, 16 clips, and the configuration that trains two steps."""
    from simpletuner.data.world import write_world
    from simpletuner.models.ltxvideo.miniature import write_miniature

    write_miniature(folder / "model")
    write_world(folder / "clips", clips=CLIPS, width=WIDTH, height=HEIGHT, num_frames=FRAMES, frame_rate=RATE, seed=0)
    datasets = [
        {
            "id": "clips",
            "type": "local",
            "instance_data_dir": str(folder / "clips"),
            "dataset_type": "video",
            "resolution": HEIGHT,
            "resolution_type": "pixel",
            "video": {"num_frames": FRAMES},
        },
        {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True},
    ]
    config = {
        "model_family": "ltxvideo",
        "model_type": "lora",
        "pretrained_model_name_or_path": str(folder / "model"),
        "output_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
        "data_backend_config": str(folder / "multidatabackend.json"),
        "max_train_steps": 2,
        "train_batch_size": 2,
        "gradient_checkpointing": False,
        "checkpoint_step_interval": 0,
        "validation_disable": True,
    }
    (folder / "multidatabackend.json").write_text(json.dumps(datasets))
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def time_start(config: Path) -> dict[str, float]:
    """Seconds of each part of one start, by the run's journal."""
    run = config.parent / "run"
    shutil.rmtree(run, ignore_errors=True)
    started = time.time()
    subprocess.run(
        [sys.executable, "-m", "simpletuner", "train", "--config", str(config)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    marks = {"start": started}
    for line in lines:
        name = moment_name(line)
        if name and name not in marks:
            marks[name] = stamp(line["time"])
    spans = {part: marks[part] - marks[before] for before, part in itertools.pairwise(("start", *ORDER))}
    return {**spans, "total": marks["first step"] - started}


def time_bare(folder: Path) -> float:
    """Seconds from the start of the bare program to the end of its first step."""
    program, started = Path(__file__).with_name("bare_start.py"), time.time()
    command = [sys.executable, str(program), str(folder)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    return float(told.stdout.split()[-1]) - started


def moment_name(line: dict[str, Any]) -> str:
    """Which part a journal line ends; empty for the others."""
    kind = line["kind"]
    if kind == "run_started":
        return ORDER[0]
    if kind == "stage_finished":
        return {"prompts": "captions", "latents": "latents"}.get(line["stage"], "")
    if kind == "story_told" and line["heading"] == "Training":
        return "model"
    return "first step" if kind == "step_finished" else ""


def stamp(text: str) -> float:
    """Seconds since the epoch of a journal's time stamp."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds by part, for cold and warm starts."""
    with tempfile.TemporaryDirectory() as folder:
        config = write_project(Path(folder))
        found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
        time_start(config), time_bare(Path(folder))
        for _ in range(rounds):
            for cache in ("cache", "encoded"):
                shutil.rmtree(Path(folder) / cache, ignore_errors=True)
            for kind in found:
                spans, bare = time_start(config), time_bare(Path(folder))
                found[kind].append({**spans, "bare, total": bare, "ratio": spans["total"] / bare})
    return {
        kind: {part: statistics.median(spans[part] for spans in several) for part in PARTS}
        for kind, several in found.items()
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """The result as a Markdown table, seconds."""
    rows = [f"| {part} | {found['cold'][part]:.2f} | {found['warm'][part]:.2f} |" for part in PARTS]
    return "\n".join(["| part, seconds | cold | warm |", "|---|---|---|", *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/start_up_NAME.md")
    chosen = parser.parse_args(arguments)
    text = table(measure(chosen.rounds))
    print(text)
    if chosen.write:
        import torch

        head = (
            f"# Start-up, {platform.machine()}, {os.cpu_count()} cores\n\n"
            f"Python {platform.python_version()}, torch {torch.__version__}. Command: "
            f"`python benchmarks/start_up.py --rounds {chosen.rounds}`\n\n"
            f"{CLIPS} clips of {WIDTH}x{HEIGHT}x{FRAMES}, the small checkpoint, medians of {chosen.rounds} rounds.\n\n"
        )
        (Path(__file__).parent / f"start_up_{chosen.write}.md").write_text(head + text + "\n")


if __name__ == "__main__":
    main()
