"""`simpletuner data inspect|lint`: see what the trainer sees, and everything worth mending about the data."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simpletuner.cli.logs import begin_logging
from simpletuner.cli.progress import LateProgress
from simpletuner.cli.tell import STYLES, console_for, tell_problems
from simpletuner.config.resolve import resolve_config
from simpletuner.config.run_config import RunConfig
from simpletuner.config.sources import process_environment
from simpletuner.core.errors import ExitCode, Severity, UserError

if TYPE_CHECKING:
    from simpletuner.data.findings import Finding
    from simpletuner.recipes.lint import LintReport

USAGE = """\
usage: simpletuner data lint    [--json] [--all] [--no-frames] [--retry] [arguments of `simpletuner train`]
       simpletuner data inspect [--limit N] [--output FOLDER] [--encode] [arguments of `simpletuner train`]

lint tells everything worth mending about the clips and captions, at once: files that cannot be used, captions that
are too short, too long or repeated, clips that show the same, black, still, blurred, flickering or interlaced clips,
mixed frame rates, enlarged clips, buckets with few samples. Some frames of each clip are decoded; what was seen is
remembered. Exit code: 0 nothing but notes, 1 warnings, 2 errors.

  --json       print one JSON document instead of text
  --all        name every file; otherwise up to 20 of a kind
  --no-frames  look at headers and captions only
  --retry      try files again that are on the quarantine list

inspect writes a page with pictures: the trained frames of the source beside the same frames decoded from the cached
latents, captions as trained, buckets, windows, verdicts, pixel errors.

  --limit N        samples with pictures (24); flagged ones come first
  --output FOLDER  where the page goes (<output_dir>/inspect)
  --encode         first encode the clips whose latents are missing, as training would
"""

NAMED_PER_KIND = 20
DEFAULT_PICTURES = 24


def run(words: list[str]) -> int:
    """Do one of the two; gives the exit code."""
    if not words or words[0] in ("-h", "--help") or "-h" in words or "--help" in words:
        sys.stdout.write(USAGE)
        return ExitCode.OK
    actions: dict[str, Callable[[list[str]], int]] = {"lint": _lint, "inspect": _inspect}
    if words[0] not in actions:
        raise UserError(
            f"`simpletuner data {words[0]}`", "There is no such action", "Write `data lint` or `data inspect`"
        )
    begin_logging()
    return actions[words[0]](words[1:])


def _config(words: Sequence[str]) -> RunConfig:
    return resolve_config(words, process_environment(), Path.cwd())


# lint -------------------------------------------------------------------------------------------


def _lint(words: list[str]) -> int:
    parser = argparse.ArgumentParser("simpletuner data lint", allow_abbrev=False, add_help=False)
    for flag in ("--json", "--all", "--no-frames", "--retry"):
        parser.add_argument(flag, action="store_true")
    own, rest = parser.parse_known_args(words)
    config = _config(rest)
    from simpletuner.recipes.lint import lint_data

    report = lint_data(config, LateProgress(), frames=not own.no_frames, retry=own.retry)
    if own.json:
        sys.stdout.write(json.dumps(report.as_document(), indent=2, ensure_ascii=False) + "\n")
    else:
        _tell(report, everything=own.all)
    return {Severity.ERROR: ExitCode.USER, Severity.WARNING: 1}.get(report.worst or Severity.NOTE, ExitCode.OK)


def _tell(report: LintReport, *, everything: bool) -> None:
    """Findings by kind, the gravest first, and a verdict."""
    console = console_for(sys.stdout)
    tell_problems(report.problems, sys.stdout)
    groups: dict[tuple[Severity, str], list[Finding]] = {}
    for finding in report.findings:
        groups.setdefault((finding.severity, finding.kind), []).append(finding)
    for (severity, kind), members in groups.items():
        counted = f" ({len(members)})" if len(members) > 1 else ""
        console.print(f"{severity.value}: {kind}{counted}", style=STYLES[severity])
        shown = members if everything else members[:NAMED_PER_KIND]
        for finding in shown:
            console.print(f"    {finding.shown_path}: {finding.what}" if finding.shown_path else f"    {finding.what}")
        if len(shown) < len(members):
            console.print(f"    and {len(members) - len(shown)} more; --all names them", style="dim")
        console.print(f"    {members[0].fix}", style="green")
    if report.retried:
        console.print(f"{report.retried} files were taken off the quarantine list and tried again.")
    console.print(_verdict(report))


def _verdict(report: LintReport) -> str:
    found = [*(item.severity for item in report.problems), *(item.severity for item in report.findings)]
    counts = {severity: found.count(severity) for severity in Severity}
    told = [f"{count} {severity.value}{'s' if count > 1 else ''}" for severity, count in counts.items() if count]
    data = f"{report.files} files, {len(report.samples)} samples, {len(report.trained)} trained"
    return f"{data}: {', '.join(told) or 'nothing to mend'}."


# inspect ----------------------------------------------------------------------------------------


def _inspect(words: list[str]) -> int:
    parser = argparse.ArgumentParser("simpletuner data inspect", allow_abbrev=False, add_help=False)
    parser.add_argument("--limit", type=_count, default=DEFAULT_PICTURES)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--encode", action="store_true")
    own, rest = parser.parse_known_args(words)
    config = _config(rest)
    folder = own.output or Path(config.checkpoint.output_dir) / "inspect"
    from simpletuner.events.sinks.console import ConsoleSink
    from simpletuner.recipes.inspect import inspect_data

    sink = ConsoleSink(folder)
    try:
        page = inspect_data(config, folder, lambda event: sink.receive(event, 0), limit=own.limit, encode=own.encode)
    finally:
        sink.close()
    sys.stdout.write(f"Open {page.resolve()} in a browser.\n")
    return ExitCode.OK


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0")
    return int(text)
