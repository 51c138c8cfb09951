"""Findings on the terminal: each with what was found, the rule, and the fix; never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from simpletuner.core.errors import Problem, Severity

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def console_for(stream: TextIO) -> Console:
    """A console that neither breaks lines of a pipe nor guesses at markup."""
    from rich.console import Console

    width = None if stream.isatty() else 4096
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=not stream.isatty())


def tell_problems(problems: Sequence[Problem], stream: TextIO | None = None) -> None:
    """Print findings sorted by severity, errors first; in colours on a terminal."""
    stream = stream or sys.stderr
    parts = [problem_parts(each) for severity in Severity for each in problems if each.severity is severity]
    if not stream.isatty():
        stream.writelines("".join(text for text, _ in each) + "\n" for each in parts)
    elif parts:
        from rich.text import Text

        console = console_for(stream)
        for each in parts:
            console.print(Text.assemble(*each))


def problem_parts(problem: Problem) -> list[tuple[str, str]]:
    """One finding as (text, style) pairs: the place and what was found, then rule and fix below it."""
    parts = [(f"{problem.severity.value}: ", STYLES[problem.severity])]
    if problem.where and not problem.what.startswith(f"{problem.where} "):  # an option's name is told once
        parts.append((f"{problem.where}: ", "bold"))
    parts.append((problem.what, ""))
    parts += [(f"\n    {line}", style) for line, style in ((problem.rule, ""), (problem.fix, "green")) if line]
    return parts


def summary(problems: Sequence[Problem]) -> str:
    """ "2 errors, 1 warning, 3 notes" """
    parts = []
    for severity in Severity:
        count = sum(problem.severity is severity for problem in problems)
        if count:
            parts.append(f"{count} {severity.value}{'s' if count > 1 else ''}")
    return ", ".join(parts) or "no findings"
