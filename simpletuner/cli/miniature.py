"""`simpletuner miniature FOLDER`: a small random checkpoint in the layout of the real one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from simpletuner.cli.logs import begin_logging
from simpletuner.core.errors import UserError
from simpletuner.core.files import ensure_writable


def run(words: list[str]) -> int:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(
        "simpletuner miniature", description="Write a small random LTX-Video checkpoint to try things with."
    )
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--release", default="0.9.5", help="release whose structure it copies (0.9.5)")
    arguments = parser.parse_args(words)
    begin_logging()
    if arguments.folder.exists():
        raise UserError(
            f"'{arguments.folder}' is already there", "Nothing of yours is overwritten", "Choose another folder"
        )
    ensure_writable(arguments.folder.absolute().parent, "folder")
    from simpletuner.recipes.miniature import make_miniature

    written = make_miniature(arguments.folder, arguments.release)
    sys.stdout.write(f"Wrote {written}. Its weights are random: it learns, but its videos show noise.\n")
    return 0
