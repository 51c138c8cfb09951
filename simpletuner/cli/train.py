"""`simpletuner train`: resolve the configuration, then hand it to the recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from simpletuner.cli.logs import begin_logging
from simpletuner.cli.progress import loading_libraries
from simpletuner.config.resolve import resolve_config
from simpletuner.config.run_config import RunConfig
from simpletuner.config.sources import process_environment
from simpletuner.config.surfaces.terminal import list_options

USAGE = """\
usage: simpletuner train [--config FILE | --env NAME | --example NAME] [--dry-run] [key=value | --key value | --flag …]

Trains what config/config.json says. The selectors take another configuration: a file, the folder config/NAME/
(also ENV=NAME in the environment), or an example that came with the program. Overrides win over the file.
With --dry-run nothing is trained: it tells what `simpletuner plan` tells, and takes its flags.

Options that work today (`simpletuner options --all` lists every one, `simpletuner options NAME` explains it):
"""


def run(words: list[str]) -> int:
    """Train; gives the exit code of the run."""
    if "-h" in words or "--help" in words:
        sys.stdout.write(USAGE + "\n".join(list_options(everything=False)) + "\n")
        return 0
    if "--dry-run" in words:
        from simpletuner.cli import plan

        return plan.run([word for word in words if word != "--dry-run"])
    environment = process_environment()
    begin_logging()
    config = resolve_config(words, environment, Path.cwd())
    with loading_libraries():
        from simpletuner.recipes import train

    start: Callable[[RunConfig], int] = train.train_from_config
    return start(config)
