"""`simpletuner check`: every finding about a run, at once and without loading anything."""

from __future__ import annotations

import sys
from pathlib import Path

from simpletuner.cli.progress import LateProgress
from simpletuner.cli.tell import summary, tell_problems
from simpletuner.config.sources import process_environment
from simpletuner.core.errors import ExitCode, Severity

USAGE = """\
usage: simpletuner check [--config FILE | --env NAME | --example NAME] [--no-data] [key=value …]

Takes the same arguments as `simpletuner train`, and tells errors, warnings and notes, each with its place and the fix.
It reads the configuration with every file it names, the headers of the clips (remembered from then on), the shape of
the model, and this machine; it loads and downloads nothing.

  --no-data   leave the clips alone: configuration only

Exit code: 0 fine (notes at most), 1 warnings, 2 errors.
"""

WARNINGS_ONLY = 1


def run(words: list[str]) -> int:
    """Check; gives 0, 1 or 2."""
    if "-h" in words or "--help" in words:
        sys.stdout.write(USAGE)
        return ExitCode.OK
    from simpletuner.recipes.check import check_run

    with_data = "--no-data" not in words
    words = [word for word in words if word != "--no-data"]
    checked = check_run(words, process_environment(), Path.cwd(), LateProgress(), with_data=with_data)
    tell_problems(checked.problems, sys.stdout)
    verdict = "This cannot be trained yet" if checked.has_errors else "This can be trained"
    sys.stdout.write(f"{verdict}: {summary(checked.problems)}.\n")
    if checked.has_errors:
        return ExitCode.USER
    worst = {problem.severity for problem in checked.problems}
    return WARNINGS_ONLY if Severity.WARNING in worst else ExitCode.OK
