"""`simpletuner demo`: the whole path with made-up clips and a small model, offline and on any machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from simpletuner.cli.logs import set_up_logging
from simpletuner.config.sources import log_level, process_environment
from simpletuner.core.files import ensure_writable


def run(words: list[str]) -> int:
    """Run the demonstration; gives its exit code."""
    parser = argparse.ArgumentParser(
        "simpletuner demo", description="Make a small checkpoint and clips, train a LoRA on them, show the result."
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder of the run (output/demo)")
    parser.add_argument("--steps", type=_positive, help="optimizer steps (default: what the demo needs to learn)")
    arguments = parser.parse_args(words)
    complaint = set_up_logging(log_level(process_environment()))
    if complaint:
        sys.stderr.write(complaint + "\n")
    ensure_writable(arguments.output, "output folder")
    from simpletuner.recipes.demo import run_demo

    code: int = run_demo(arguments.output, arguments.steps)
    return code


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)
