"""`simpletuner runs`: which runs there are, the state they are in, and how to go on with each."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

from rich.text import Text

from simpletuner.cli.tell import console_for
from simpletuner.events.wording import told_duration
from simpletuner.recipes.runs import FoundRun, find_runs

DEFAULT = "output"
STYLES = {"finished": "green", "running": "cyan", "starting": "cyan", "ending": "cyan", "stopped": "yellow"}


def run(words: list[str]) -> int:
    """List the runs."""
    parser = argparse.ArgumentParser(
        "simpletuner runs",
        description="List runs, the latest first: running, stopped, failed, crashed or finished, at which step, and "
        "the command that goes on from there. A run counts as crashed when its journal tells no end and nobody holds "
        "its folder.",
    )
    parser.add_argument("folder", nargs="*", default=[DEFAULT], help="a run folder, or one that holds some")
    parser.add_argument("--json", action="store_true", help="one JSON object per run, for scripts")
    arguments = parser.parse_args(words)
    runs = find_runs([Path(folder) for folder in arguments.folder])
    if arguments.json:
        for found in runs:
            sys.stdout.write(json.dumps(_document(found), ensure_ascii=False) + "\n")
        return 0
    console = console_for(sys.stdout)
    if not runs:
        console.print(f"There is no run in {', '.join(arguments.folder)}.")
    for found in runs:
        for line in _lines(found, datetime.now(timezone.utc)):
            console.print(line)
    return 0


def _lines(found: FoundRun, now: datetime) -> list[Text]:
    head = Text(str(found.folder), "bold")
    if found.facts.name:
        head.append(f"  {found.facts.name}", "")
    head.append(f"  {found.told}", STYLES.get(found.state, "red"))
    head.append(f", {_age(found.facts.last_time, now)}", "dim")
    lines = [head]
    reason = found.facts.detail.strip().splitlines()[:1] if found.state == "failed" else []
    lines += [Text(f"    {line}", "red") for line in reason]
    if found.advice:
        lines.append(Text(f"    {found.advice}", "dim"))
    if found.advice and found.state != "finished":
        place = f"cd {found.working_folder} && " if _is_elsewhere(found.working_folder) else ""
        lines.append(Text(f"    {place}{found.command}"))
        if found.missing:
            lines.append(Text(f"    add what is secret: {', '.join(found.missing)}", "dim"))
    return lines


def _is_elsewhere(folder: str) -> bool:
    return bool(folder) and Path(folder) != Path.cwd()


def _age(moment: str, now: datetime) -> str:
    try:
        then = datetime.fromisoformat(moment.replace("Z", "+00:00"))
    except ValueError:
        return "at an unknown time"
    return f"{told_duration(max((now - then).total_seconds(), 0))} ago"


def _document(found: FoundRun) -> dict[str, object]:
    facts = found.facts
    return {
        "folder": str(found.folder),
        "name": facts.name,
        "state": found.state,
        "step": facts.step,
        "total_steps": facts.total_steps,
        "starts": facts.starts,
        "began": facts.began,
        "last_event": facts.last_time,
        "detail": facts.detail,
        "checkpoint": found.checkpoint,
        "advice": found.advice,
        "working_folder": found.working_folder,
        "command": found.command,
        "secrets_to_add": list(found.missing),
    }
