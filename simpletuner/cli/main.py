"""The `simpletuner` command: dispatch, and the one place where errors become messages and exit codes.

Each command imports its work only when it runs, so that `--help` and `check` start without torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import ExitCode, UserError

PROGRAM = "simpletuner"


@dataclass(frozen=True)
class Command:
    """One command: where its function lives, and one line for the help text."""

    target: str
    help: str


COMMANDS: Mapping[str, Command] = {
    "demo": Command("demo", "see the whole path at work: small model, made-up clips, LoRA, videos, report"),
    "configure": Command("configure", "write a configuration, question by question, from a folder of clips"),
    "train": Command("train", "train what config/config.json says; key=value overrides it"),
    "check": Command("check", "tell every problem of a configuration, without loading anything"),
    "plan": Command("plan", "tell what a run would do and cost: options, data, disk, memory, time"),
    "data": Command("data", "see what the trainer sees (inspect), or everything worth mending in the data (lint)"),
    "cache": Command("cache", "build, count, verify or prune the encoded clips and captions"),
    "generate": Command("generate", "make videos from prompts, with the adapters of a run or any others"),
    "evaluate": Command("evaluate", "measure weights by their loss on clips that are never trained"),
    "profile": Command("profile", "tell where the time of a training step goes, with a trace file"),
    "report": Command("report", "write the pages that show a run: curves, videos, where the time went"),
    "export": Command("export", "write an adapter in another program's layout, or merge it into a base model"),
    "runs": Command("runs", "list runs: which are at work, stopped, crashed or finished, and how to go on"),
    "options": Command("options", "list all options, or explain one"),
    "examples": Command("examples", "list, show or copy example configurations"),
    "completion": Command("completion", "print what makes a shell complete commands and options"),
    "miniature": Command("miniature", "write a small random LTX-Video checkpoint to try things with"),
}

PLANNED: Mapping[str, tuple[str, str]] = {
    "server": (
        "the web interface",
        "Use `simpletuner train`; the run folder holds a report that opens in a browser",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _survive_odd_characters()
    try:
        return _run(words)
    except UserError as error:
        from simpletuner.cli.tell import tell_problems

        tell_problems(error.problems)
        return error.exit_code
    except KeyboardInterrupt as stop:
        if stop.args:  # by a signal that a run has heard of, and told itself
            return ExitCode.SIGNALLED + int(stop.args[0])
        sys.stderr.write("\nInterrupted.\n")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (`| head`) went away; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(help_text())
        return ExitCode.OK
    if words[0] in ("-v", "--version"):
        sys.stdout.write(f"{PROGRAM} {own_version()}\n")
        return ExitCode.OK
    name, rest = words[0], words[1:]
    if name in PLANNED:
        missing, instead = PLANNED[name]
        raise UserError(f"`{PROGRAM} {name}`", f"Not built yet: {missing}", instead)
    if name not in COMMANDS:
        return _unknown_command(name)
    return _command(COMMANDS[name].target)(rest)


def _command(target: str) -> Callable[[list[str]], int]:
    import importlib

    function: Callable[[list[str]], int] = importlib.import_module(f"simpletuner.cli.{target}").run
    return function


def _unknown_command(name: str) -> int:
    near = did_you_mean(name, [*COMMANDS, *PLANNED])
    kind = "flag" if name.startswith("-") else "command"
    sys.stderr.write(f"error: unknown {kind} '{name}'. {near}".rstrip() + "\n\n" + usage())
    return ExitCode.USER


def usage() -> str:
    """The first lines of the help text."""
    return f"usage: {PROGRAM} COMMAND [arguments]\n       {PROGRAM} --help | --version\n"


def help_text() -> str:
    """What `simpletuner --help` prints."""
    width = max(len(name) for name in (*COMMANDS, *PLANNED))
    lines = [usage(), "Commands:"]
    lines += [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    lines += [f"  {name:<{width}}  (not built yet) {missing}" for name, (missing, _) in PLANNED.items()]
    lines += ["", f"Start with `{PROGRAM} demo`. Each command explains itself with --help.", ""]
    return "\n".join(lines)


def own_version() -> str:
    """Version of the installed package; "unknown" when it runs from a bare checkout."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("simpletuner")
    except PackageNotFoundError:
        return "unknown"


def _survive_odd_characters() -> None:
    """Print characters a terminal cannot show as escapes instead of failing."""
    import io

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
