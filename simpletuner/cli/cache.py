"""`simpletuner cache build|status|verify|prune`: the encoded clips and captions, apart from training."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from simpletuner.cli.logs import begin_logging
from simpletuner.cli.progress import LateProgress, loading_libraries
from simpletuner.cli.tell import console_for
from simpletuner.config.resolve import resolve_config
from simpletuner.config.run_config import RunConfig
from simpletuner.config.sources import process_environment
from simpletuner.core.errors import ExitCode, UserError
from simpletuner.events.wording import told_size

if TYPE_CHECKING:
    from simpletuner.recipes.cache import CacheReport

USAGE = """\
usage: simpletuner cache build                      [arguments of `simpletuner train`]
       simpletuner cache status  [--json]           [arguments of `simpletuner train`]
       simpletuner cache verify  [--json]           [arguments of `simpletuner train`]
       simpletuner cache prune   [--dry-run] [--yes] [--json] [arguments of `simpletuner train`]

build encodes every clip and caption that training will need, quantizes the base model if base_model_precision asks for
it, and stops there. Several processes, also on several
machines with one file system, may build one cache at once and share the work. Ctrl-C loses nothing that is finished.

status compares the caches with what this configuration wants: entries that are usable, missing, damaged, and stale
(made with other settings, or for clips that are gone). Headers are read, nothing is loaded, nothing is changed.
verify does the same and reads every byte.
  Exit code: 0 complete, 1 something is missing or damaged.

prune removes stale and damaged entries and says how many bytes come free. What another configuration wants is stale
here and goes too. Sources are never touched.
  --dry-run  only tell what would be removed
  --yes      do not ask
  --json     print one JSON document instead of text
"""

INCOMPLETE = 1
NAMED = 20


def run(words: list[str]) -> int:
    """Do one of the four; gives the exit code."""
    if not words or words[0] in ("-h", "--help") or "-h" in words or "--help" in words:
        sys.stdout.write(USAGE)
        return ExitCode.OK
    actions: dict[str, Callable[[list[str]], int]] = {
        "build": _build,
        "status": lambda rest: _report(rest, verify=False),
        "verify": lambda rest: _report(rest, verify=True),
        "prune": _prune,
    }
    if words[0] not in actions:
        raise UserError(
            f"`simpletuner cache {words[0]}`", "There is no such action", f"Write one of: {', '.join(actions)}"
        )
    begin_logging()
    return actions[words[0]](words[1:])


def _config(words: list[str]) -> RunConfig:
    return resolve_config(words, process_environment(), Path.cwd())


def _flags(words: list[str], *names: str) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser("simpletuner cache", allow_abbrev=False, add_help=False)
    for name in names:
        parser.add_argument(name, action="store_true")
    return parser.parse_known_args(words)


def _build(words: list[str]) -> int:
    config = _config(words)
    from simpletuner.events.sinks.console import ConsoleSink

    with loading_libraries():
        from simpletuner.recipes.cache import build_caches

    sink = ConsoleSink(Path(config.checkpoint.output_dir))
    try:
        complete = build_caches(config, lambda event: sink.receive(event, 0))
    finally:
        sink.close()
    return ExitCode.OK if complete else INCOMPLETE


def _report(words: list[str], *, verify: bool) -> int:
    own, rest = _flags(words, "--json")
    config = _config(rest)
    from simpletuner.recipes.cache import report_caches

    reports = report_caches(config, LateProgress(), verify=verify)
    if own.json:
        sys.stdout.write(json.dumps([report.as_document() for report in reports], indent=2, ensure_ascii=False) + "\n")
    else:
        _tell(reports, verified=verify)
    return ExitCode.OK if all(report.is_complete for report in reports) else INCOMPLETE


def _tell(reports: list[CacheReport], *, verified: bool) -> None:
    console = console_for(sys.stdout)
    for report in reports:
        console.print(f"{report.name}  {report.folder}", style="bold")
        console.print(f"    usable   {report.usable} of {report.wanted} ({told_size(report.usable_bytes)})")
        if report.missing:
            console.print(f"    missing  {report.missing}", style="yellow")
        if report.damaged:
            console.print(f"    damaged  {len(report.damaged)}", style="red")
        for entry, reason in report.damaged[:NAMED]:
            console.print(f"        {entry}: {reason}")
        if report.stale:
            console.print(f"    stale    {report.stale} ({told_size(report.stale_bytes)})", style="dim")
    lacking = sum(report.wanted - report.usable for report in reports)
    checked = "every byte verified" if verified else "headers compared"
    if lacking:
        console.print(f"{lacking} entries would be encoded by `simpletuner cache build` or by training; {checked}.")
    else:
        console.print(f"Complete; {checked}.")


def _prune(words: list[str]) -> int:
    own, rest = _flags(words, "--dry-run", "--yes", "--json")
    config = _config(rest)
    from simpletuner.recipes.cache import find_cache_waste, prune_caches

    progress = LateProgress()
    waste = find_cache_waste(config, progress)
    told = (
        f"{waste.stale_count} stale and {waste.damaged_count} damaged entries, {told_size(waste.bytes)}, "
        "that this configuration does not need"
    )
    removes = waste.entries > 0 and not own.dry_run and (own.yes or own.json or _agreed(told))
    if removes and own.json and not own.yes:
        raise UserError(
            "`cache prune --json` without --yes", "With --json nobody can be asked", "Add --yes or --dry-run"
        )
    if removes:
        prune_caches(config, waste, progress)
    if own.json:
        document = {
            "stale": waste.stale_count, "damaged": waste.damaged_count, "bytes": waste.bytes, "removed": removes,
        }  # fmt: skip
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    elif waste.entries == 0:
        sys.stdout.write("There is nothing to remove.\n")
    else:
        sys.stdout.write(f"{'Removed' if removes else 'Would remove'} {told}.\n")
    return ExitCode.OK


def _agreed(told: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError(
            f"`cache prune` would remove {told}",
            "Nobody is at the terminal to agree",
            "Add --yes to remove them, or --dry-run to see this without an error",
        )
    sys.stdout.write(f"Remove {told}? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
