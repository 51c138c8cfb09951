"""Findings on the terminal: each with what was found, the rule, and the fix; never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

from simpletuner.core.errors import Problem, Severity

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def console_for(stream: TextIO) -> Console:
    """A console that neither breaks lines of a pipe nor guesses at markup."""
    width = None if stream.isatty() else 4096
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=not stream.isatty())


def tell_problems(problems: Sequence[Problem], stream: TextIO | None = None) -> None:
    """Print findings sorted by severity, errors first."""
    console = console_for(stream or sys.stderr)
    for severity in Severity:
        for problem in problems:
            if problem.severity is severity:
                console.print(problem_text(problem))


def problem_text(problem: Problem) -> Text:
    """One finding as styled text: the place and what was found, then rule and fix below it."""
    text = Text(f"{problem.severity.value}: ", style=STYLES[problem.severity])
    if problem.where:
        text.append(f"{problem.where}: ", style="bold")
    text.append(problem.what, style="")
    for line, style in ((problem.rule, ""), (problem.fix, "green")):
        if line:
            text.append(f"\n    {line}", style=style)
    return text


def summary(problems: Sequence[Problem]) -> str:
    """ "2 errors, 1 warning, 3 notes" """
    parts = []
    for severity in Severity:
        count = sum(problem.severity is severity for problem in problems)
        if count:
            parts.append(f"{count} {severity.value}{'s' if count > 1 else ''}")
    return ", ".join(parts) or "no findings"
