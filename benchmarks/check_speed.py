"""How long `simpletuner check` takes: the configuration alone, and with 1,000 clips, cold and remembered.

    python benchmarks/check_speed.py [--clips 1000] [--rounds 3]

Each figure is the best of the rounds of a whole process, start-up included. The clips are copies of
one small file, so what is timed is listing, reading headers and planning, not the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def write_project(folder: Path, clips: int) -> None:
    """A configuration in order, a small checkpoint, and copies of one clip with captions."""
    from simpletuner.data.world import write_world
    from simpletuner.models.ltxvideo.miniature import write_miniature

    write_miniature(folder / "model")
    write_world(folder / "one", clips=1, width=96, height=64, num_frames=12, frame_rate=12.0, seed=0)
    clip = next(path for path in (folder / "one").iterdir() if path.suffix == ".mp4")
    (folder / "clips").mkdir()
    for number in range(clips):
        shutil.copy(clip, folder / f"clips/{number:05}.mp4")
        (folder / f"clips/{number:05}.txt").write_text(f"a red ball, number {number}")
    (folder / "config").mkdir()
    options = {
        "model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 1000, "validation_disable": True,
        "pretrained_model_name_or_path": str(folder / "model"), "train_batch_size": 4,
    }  # fmt: skip
    datasets = [
        {"id": "clips", "dataset_type": "video", "instance_data_dir": str(folder / "clips"), "resolution": 64,
         "resolution_type": "pixel", "video": {"num_frames": 9}},
        {"id": "texts", "dataset_type": "text_embeds"},
    ]  # fmt: skip
    (folder / "config/config.json").write_text(json.dumps(options))
    (folder / "config/multidatabackend.json").write_text(json.dumps(datasets))


def time_check(folder: Path, *words: str) -> float:
    """Seconds of one `simpletuner check`."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "simpletuner", "check", *words], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode == 2:
        raise RuntimeError(done.stdout + done.stderr)
    return time.perf_counter() - begun


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write_project(folder, chosen.clips)
        alone = min(time_check(folder, "--no-data") for _ in range(chosen.rounds))
        first = time_check(folder)
        again = min(time_check(folder) for _ in range(chosen.rounds))
    print("| simpletuner check | seconds |\n|---|---|")
    print(f"| configuration alone | {alone:.2f} |")
    print(f"| {chosen.clips} clips, first time | {first:.2f} |")
    print(f"| {chosen.clips} clips, headers remembered | {again:.2f} |")


if __name__ == "__main__":
    main()
