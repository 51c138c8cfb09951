"""`simpletuner demo`: the whole path with made-up clips and a small trained model, offline and on any machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from simpletuner.cli.logs import begin_logging
from simpletuner.cli.progress import loading_libraries
from simpletuner.core.files import ensure_writable

# As in data/world_styles.py, which `--help` must not import (it needs numpy); a test compares them.
STYLES = ("film", "sepia", "outline", "pixelated")


def run(words: list[str]) -> int:
    """Run the demonstration; gives its exit code."""
    parser = argparse.ArgumentParser(
        "simpletuner demo",
        description="Teach a small trained model something on made-up clips, and show it before and after.",
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder of the run (output/demo)")
    parser.add_argument("--steps", type=_positive, help="optimizer steps (default: what the demo needs to learn)")
    content = parser.add_mutually_exclusive_group()
    content.add_argument("--style", choices=STYLES, default="film", help="look that is learnt (film)")
    content.add_argument("--subject", action="store_true", help="learn a new shape and its word instead of a look")
    method = parser.add_mutually_exclusive_group()
    method.add_argument("--full", action="store_true", help="train all weights instead of a LoRA")
    method.add_argument("--lycoris", action="store_true", help="train a LyCORIS adapter (LoKr) instead of a LoRA")
    method.add_argument("--i2v", action="store_true", help="train videos that begin with a given picture")
    arguments = parser.parse_args(words)
    begin_logging()
    ensure_writable(arguments.output, "output folder")
    with loading_libraries():
        from simpletuner.recipes.demo import Demo, Method, run_demo

    chosen: Method = (
        "full" if arguments.full else "lycoris" if arguments.lycoris else "i2v" if arguments.i2v else "lora"
    )
    demo = Demo(chosen, arguments.style, arguments.subject, arguments.steps or Demo.steps)
    code: int = run_demo(arguments.output, demo)
    return code


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)
