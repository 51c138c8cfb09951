"""`simpletuner report RUN`: write the pages that show a run, from what its folder holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from simpletuner.core.errors import ExitCode


def run(words: Sequence[str]) -> int:
    """Write the report; gives the exit code.

    Raises:
        UserError: If the folder is not that of a run, or cannot be written (exit code 6).
    """
    parser = argparse.ArgumentParser(
        prog="simpletuner report",
        description="Write report.html and gallery.html into a run folder: curves, videos step under step, what they "
        "measure, hardware, where the time went. Both open in any browser and ask nothing of any network. Works while "
        "the run goes on, after a crash, and on a copied folder.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="output_dir of a run")
    parser.add_argument("--title", help="name on the pages (default: that of the run)")
    arguments = parser.parse_args(words)
    from simpletuner.validation.report import run_title, write_report

    folder: Path = arguments.run
    page = write_report(folder, title=arguments.title or run_title(folder))
    sys.stdout.write(f"{page.resolve()}\n")
    return ExitCode.OK
