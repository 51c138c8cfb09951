"""`simpletuner profile`: where the time of a training step goes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from simpletuner.cli.logs import begin_logging
from simpletuner.cli.progress import loading_libraries
from simpletuner.cli.tell import console_for
from simpletuner.config.resolve import resolve_config
from simpletuner.config.sources import process_environment, quiet_profiler
from simpletuner.core.errors import ExitCode, UserError

STEPS = 3
USAGE = f"""\
usage: simpletuner profile [--steps N] [--json] [the arguments of `simpletuner train`]

Takes some real steps of a configuration, with its own clips, model and options, and tells where their time goes:
waiting for data, forward and backward pass by block and part, optimizer, running average, and the rest; the operations
that take longest, how often the host waits for the device, and the peak of memory. What is missing in the caches is
encoded first. Nothing is saved but two files in the folder `profile` of output_dir, and checkpoints are neither read
nor written: the steps begin with fresh weights.

  --steps N  steps that are traced (default {STEPS}); as many are taken before without the profiler, for the pace
  --json     one JSON document instead of the page

  profile/summary.txt    the page
  profile/trace.json.gz  every operation on a time line, for chrome://tracing or Perfetto
"""


def run(words: list[str]) -> int:
    """Profile; gives the exit code."""
    if "-h" in words or "--help" in words:
        sys.stdout.write(USAGE)
        return ExitCode.OK
    begin_logging()
    parser = argparse.ArgumentParser("simpletuner profile", allow_abbrev=False, add_help=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", default=str(STEPS))
    own, rest = parser.parse_known_args(words)
    steps = _count(own.steps)
    config = resolve_config(rest, process_environment(), Path.cwd())
    quiet_profiler()
    from simpletuner.events.sinks.console import ConsoleSink

    with loading_libraries():
        from simpletuner.recipes.profiling import profile_run

    sink = ConsoleSink(Path(config.checkpoint.output_dir), console_for(sys.stderr) if own.json else None)
    try:
        found, page = profile_run(config, steps, lambda event: sink.receive(event, 0))
    finally:
        sink.close()
    sys.stdout.write(json.dumps(found.as_document(), indent=2, ensure_ascii=False) + "\n" if own.json else "\n" + page)
    return ExitCode.OK


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"--steps '{text}'", "It is a number of steps, at least 1", "Leave it out for 3", where="--steps"
        )
    return int(text)
