"""`simpletuner check`: every finding about a configuration, at once and without loading anything."""

from __future__ import annotations

import sys
from pathlib import Path

from simpletuner.cli.tell import console_for, summary, tell_problems
from simpletuner.config.resolve import examine
from simpletuner.config.sources import process_environment
from simpletuner.core.errors import ExitCode, Severity

USAGE = """\
usage: simpletuner check [--config FILE | --env NAME | --example NAME] [key=value …]

Takes the same arguments as `simpletuner train`, and tells errors, warnings and notes, each with its place and the fix.
Exit code: 0 fine (notes at most), 1 warnings, 2 errors.
"""

WARNINGS_ONLY = 1


def run(words: list[str]) -> int:
    """Check; gives 0, 1 or 2."""
    if "-h" in words or "--help" in words:
        sys.stdout.write(USAGE)
        return ExitCode.OK
    examination = examine(words, process_environment(), Path.cwd())
    problems = examination.problems if examination.config is None else examination.config.notices
    tell_problems(problems, sys.stdout)
    worst = {problem.severity for problem in problems}
    verdict = "This cannot be trained yet" if examination.has_errors else "This can be trained"
    console_for(sys.stdout).print(f"{verdict}: {summary(problems)}.")
    if examination.has_errors:
        return ExitCode.USER
    return WARNINGS_ONLY if Severity.WARNING in worst else ExitCode.OK
