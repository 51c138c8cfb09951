"""`simpletuner completion bash|zsh|fish`: the script that makes a shell complete what one types."""

from __future__ import annotations

import argparse
import sys

from simpletuner.cli.main import COMMANDS, PROGRAM
from simpletuner.config.catalogs.cards import CARDS
from simpletuner.config.presets import preset_names
from simpletuner.config.surfaces.cli import SELECTORS
from simpletuner.config.surfaces.completion import Grammar, completion_script
from simpletuner.config.table import dataset_tables, option_table

SHELLS = ("bash", "zsh", "fish")
INSTALL = {
    "bash": "source <(simpletuner completion bash)",
    "zsh": "source <(simpletuner completion zsh)",
    "fish": "simpletuner completion fish | source",
}
# Words that may follow a command; those which take overrides get the options besides.
OVERRIDDEN = ("train", "check", "plan", "data", "cache", "profile")
FOLLOWING = {
    "cache": ("build", "status", "verify", "prune"),
    "data": ("inspect", "lint"),
    "completion": SHELLS,
    "configure": ("--answers", "--language", "--print-questions"),
    "demo": ("--output", "--steps"),
    "examples": ("list", "show", "copy", "--dest"),
    "miniature": ("--release",),
    "options": ("--all", "--schema"),
    "plan": ("--card",),
    "profile": ("--steps", "--json"),
    "runs": ("--json",),
    "train": ("--dry-run",),
}


def run(words: list[str]) -> int:
    """Print the script of one shell."""
    parser = argparse.ArgumentParser(
        "simpletuner completion", description=f"Print a completion script, for example: {INSTALL['bash']}"
    )
    parser.add_argument("shell", choices=SHELLS)
    arguments = parser.parse_args(words)
    sys.stdout.write(f"# {INSTALL[arguments.shell]}\n" + completion_script(arguments.shell, grammar()))
    return 0


def grammar() -> Grammar:
    """What can be typed after the program's name."""
    selectors = tuple(f"--{name}" for name in SELECTORS if len(name) > 1 and "_" not in name)
    keys = sorted({key for table in dataset_tables().values() for key in table} | set(option_table()))
    following = {name: FOLLOWING.get(name, ()) for name in COMMANDS}
    following |= {name: (*following[name], *selectors) for name in OVERRIDDEN if name in COMMANDS}
    following["options"] = (*following["options"], *keys)
    return Grammar(
        program=PROGRAM,
        commands={name: command.help for name, command in COMMANDS.items()},
        following=following,
        after={"--example": tuple(preset_names()), "show": tuple(preset_names()), "copy": tuple(preset_names()),
               "--language": ("en", "zh"), "--schema": ("options", "datasets"), "--card": (*CARDS, "all")},
        overridden=tuple(name for name in OVERRIDDEN if name in COMMANDS),
        options=option_table(),
    )  # fmt: skip
