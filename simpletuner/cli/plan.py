"""`simpletuner plan`: the resolved run, its data, length, disk, memory and time, before anything is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from simpletuner.cli.progress import LateProgress
from simpletuner.cli.tell import summary, tell_problems
from simpletuner.config.sources import process_environment
from simpletuner.core.errors import ExitCode, UserError

USAGE = """\
usage: simpletuner plan [the arguments of `simpletuner train`] [--card NAME|all] [--all] [--no-data] [--json]

Tells what a run would do and need: every option that differs from its default and who set it, the data plan, steps and
epochs, disk, memory and time. It reads what `simpletuner check` reads; nothing is loaded, downloaded or trained.
Times and the memory of activations are estimates. `simpletuner train --dry-run` is the same.

  --card NAME  forecast for this card (h200, rtx4090, rtx3090, …), or for `all`; without it for this machine's own
  --all        list every option, not only those that differ from their default
  --no-data    leave the clips alone
  --json       one JSON document instead of tables

Exit code: 0 when the run can start, 2 with errors; the plan of the rest is told all the same.
"""


def run(words: list[str]) -> int:
    """Plan; gives 0 or 2."""
    if "-h" in words or "--help" in words:
        sys.stdout.write(USAGE)
        return ExitCode.OK
    from simpletuner.cli import plan_tables
    from simpletuner.recipes.check import check_run

    words, card = _take_card(words)
    flags = {flag for flag in ("--all", "--json", "--no-data") if flag in words}
    words = [word for word in words if word not in flags]
    checked = check_run(
        words, process_environment(), Path.cwd(), LateProgress(), with_data="--no-data" not in flags, card=card
    )
    if checked.examination.trial is None:
        raise UserError.of(checked.problems)
    if "--json" in flags:
        sys.stdout.write(json.dumps(plan_tables.as_document(checked), indent=2, ensure_ascii=False) + "\n")
    else:
        plan_tables.show_plan(checked, sys.stdout, everything="--all" in flags)
        tell_problems(checked.problems, sys.stdout)
        verdict = "This cannot be trained yet" if checked.has_errors else "This can be trained"
        sys.stdout.write(f"{verdict}: {summary(checked.problems)}.\n")
    return ExitCode.USER if checked.has_errors else ExitCode.OK


def _take_card(words: list[str]) -> tuple[list[str], str]:
    """The words without `--card NAME`, and the name."""
    rest: list[str] = []
    card, waiting = "", False
    for word in words:
        if waiting:
            card, waiting = word, False
        elif word == "--card":
            waiting = True
        elif word.startswith(("--card=", "card=")):
            card = word.partition("=")[2]
        else:
            rest.append(word)
    if waiting:
        raise UserError("--card needs a name", fix="Write for example --card rtx4090, or --card all", where="--card")
    return rest, card
